// The view Read: the loss of a text, token by token, beside the floor where it is known.

import { $, Task, count, currentModel, el, percent, request, submitByKey } from "./shared.js";
import { TokenText, label, legend, openInspector, shade } from "./tokens.js";
import { draw } from "./chart.js";

let task, text, found = null;

const shownValue = (token) => token.nats === null ? null
  : $("read-shown").value === "excess" && token.floor !== null ? Math.max(token.nats - token.floor, 0) : token.nats;

function describe(token) {
  const value = shownValue(token);
  if (value === null) return ["given", `${label(token)}, the first token, which nothing predicts`];
  return [`shade-${shade(Math.exp(-value))}`, `${label(token)}, loss ${token.nats.toFixed(2)} nats`];
}

function inspect(i, node) {
  const token = found.tokens[i], lines = [];
  if (token.nats === null) lines.push("the first token, which nothing predicts");
  else {
    lines.push(`loss ${token.nats.toFixed(2)} nats, probability ${percent(Math.exp(-token.nats))}`);
    if (token.floor !== null) lines.push(`floor ${token.floor.toFixed(2)} nats: the best possible model gives it ${percent(Math.exp(-token.floor))}`);
    lines.push(token.guess.id === token.id ? "it is the model's first guess" : `the model's first guess: ${label(token.guess)}`);
  }
  openInspector(node, el("h2", {}, el("code", {}, label(token)), el("small", {}, ` id ${token.id}`)), ...lines.map((line) => el("p", {}, line)));
}

/** Running means of the losses, and of the floors. */
function means() {
  const curves = [{ name: "loss", steps: [], values: [] }];
  if (found.floor !== null) curves.push({ name: "floor", steps: [], values: [] });
  let nats = 0, floors = 0, n = 0;
  for (const [i, token] of found.tokens.entries()) {
    if (token.nats === null) continue;
    n += 1;
    nats += token.nats;
    floors += token.floor ?? 0;
    for (const [curve, sum] of [[curves[0], nats], [curves[1], floors]]) {
      curve?.steps.push(i + 1);
      curve?.values.push(sum / n);
    }
  }
  return curves;
}

function figure(name, value, unit) {
  return [el("div", {}, el("dt", {}, name), el("dd", {}, value, el("small", {}, unit)))];
}

function show() {
  $("read-result").hidden = false;
  $("read-shown").querySelector('[value="excess"]').disabled = found.floor === null;
  if (found.floor === null) $("read-shown").value = "loss";
  const { loss, perplexity, bits_per_byte: bits, floor } = found;
  const digits = (value, places) => value === null ? "unknown" : value.toLocaleString("en", { minimumFractionDigits: places, maximumFractionDigits: places });
  $("read-figures").replaceChildren(
    ...figure("loss", digits(loss, 3), "nats per token"), ...figure("perplexity", digits(perplexity, 2), ""),
    ...figure("bits per byte", digits(bits, 3), ""), ...figure("floor", floor === null ? "unknown" : digits(floor, 3), floor === null ? "not a built-in story" : "nats per token"),
    ...(floor ? figure("excess", `${digits((loss / floor - 1) * 100, 1)}%`, "over the floor") : []));
  color();
  draw($("read-curve"), means(), { x: "tokens", y: "nats per token", label: "Running mean of the loss" });
}

function color() {
  $("read-legend").replaceChildren(legend($("read-shown").value === "excess" ? "Excess over the floor" : "Loss"));
  text.clear();
  text.append(found.tokens, describe);
}

function start() {
  task.run(async (signal) => {
    $("read-status").textContent = "Reading …";
    try {
      found = await request("api/read", { model: currentModel().name, text: $("read-text").value }, signal);
    } catch (error) {
      $("read-status").textContent = "";
      throw error;
    }
    const part = found.tokens.length < found.total ? `the first ${found.tokens.length.toLocaleString("en")} of ` : "";
    $("read-status").textContent = `${part}${count(found.total, "token")}, read by ${currentModel().name}`;
    show();
  });
}

export function init() {
  task = new Task($("read-stop"));
  text = new TokenText($("read-tokens"), { open: inspect });
  $("read-form").addEventListener("submit", (event) => { event.preventDefault(); start(); });
  $("read-shown").addEventListener("change", color);
  $("read-story").addEventListener("click", () => task.run(async (signal) => {
    $("read-text").value = (await request("api/story", undefined, signal)).text;
  }));
  submitByKey($("read-form"));
}

export const stop = () => task.stop();
export const resize = () => found && $("read-result").hidden === false && draw($("read-curve"), means(), { x: "tokens", y: "nats per token", label: "Running mean of the loss" });
