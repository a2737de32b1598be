// The page: views by hash, the model, light and dark, and the keys that work everywhere.

import * as attention from "./attention.js";
import * as compare from "./compare.js";
import * as generate from "./generate.js";
import * as read from "./read.js";
import * as runs from "./runs.js";
import { $, currentModel, el, problemOf, request, showProblem, state } from "./shared.js";
import { closeInspector, inspectorIsOpen, startInspector } from "./tokens.js";

const VIEWS = { generate, compare, read, attention, runs };
const THEMES = ["auto", "light", "dark"];
let view = "generate";

function open() {
  const wanted = location.hash.slice(1);
  view = wanted in VIEWS ? wanted : "generate";
  closeInspector();
  for (const name of Object.keys(VIEWS)) $(`view-${name}`).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  $("model-bar").hidden = view === "compare" || view === "runs";
  document.title = `${$(`title-${view}`).textContent} · tinylm play`;
  runs.opened(view === "runs");
  VIEWS[view].resize?.();
}

function theme(chosen) {
  document.documentElement.dataset.theme = chosen;
  localStorage.setItem("theme", chosen);
  $("theme").textContent = { auto: "◐ Auto", light: "○ Light", dark: "● Dark" }[chosen];
  $("theme").setAttribute("aria-label", `Colours: ${chosen}. Change`);
  requestAnimationFrame(() => VIEWS[view].resize?.());
}

function modelChanged() {
  const { parameters, layers, heads, context, vocabulary, tokenizer, conversation } = currentModel();
  const facts = [`${parameters.toLocaleString("en")} parameters`, `${layers} layers of ${heads} heads`, `context ${context.toLocaleString("en")}`,
    `${vocabulary.toLocaleString("en")} tokens (${tokenizer})`, ...(conversation ? ["a conversation model"] : [])];
  $("model-facts").textContent = facts.map((fact) => fact.replaceAll(" ", "\u00a0")).join("\u00a0· ");
  generate.modelChanged();
  attention.modelChanged();
}

function keys(event) {
  if (event.key !== "Escape") return;
  if (inspectorIsOpen()) closeInspector(true);
  else VIEWS[view].stop?.();
}

async function start() {
  theme(THEMES.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "auto");
  $("theme").addEventListener("click", () => theme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]));
  try {
    Object.assign(state, await request("api/models"));
  } catch (error) {
    showProblem(problemOf(error));
    return;
  }
  $("model").replaceChildren(...state.models.map((each) => el("option", {}, each.name)));
  $("model").disabled = state.models.length === 1;
  startInspector();
  for (const each of Object.values(VIEWS)) each.init();
  $("model").addEventListener("change", modelChanged);
  modelChanged();
  addEventListener("hashchange", () => { open(); $("main").focus({ preventScroll: true }); });
  addEventListener("keydown", keys);
  let waiting = 0;
  addEventListener("resize", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(() => VIEWS[view].resize?.()); });
  open();
}

start();
