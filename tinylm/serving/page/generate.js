// The view Generate: a text that grows, its alternatives, its branches, and their history.

import { $, Task, count, currentModel, el, requestLines, state, submitByKey } from "./shared.js";
import { TokenText, bars, closeInspector, considered, describeGenerated, label, legend, likelihood, openInspector } from "./tokens.js";
import { Sampling } from "./sampling.js";

const ENDS = { end: "the model ended the text", stop: "a stop string ended it", length: "the limit of tokens ended it" };
const history = [];
let shown = null, sampling, text, task;

/** Generates a text as `tinylm generate` would, and calls `see(record, tokens)` as it grows. */
export async function grow(record, signal, see) {
  const started = performance.now();
  const { model, prompt, chat, options, seed, tokens } = record;
  const body = { model, prompt, chat, options: { ...options, seed }, begun: tokens.map((token) => token.id) };
  await requestLines("api/generate", body, signal, (lines) => {
    const made = [];
    for (const line of lines) {
      if (line.error) throw new Error(line.error);
      if (line.prompt) {
        record.seed = line.seed;
        record.before = line.prompt;
        record.tokens = line.begun.map((token, i) => ({ ...tokens[i], ...token }));
        made.push(...record.tokens);
      } else if (line.token) {
        record.tokens.push(line.token);
        made.push(line.token);
        record.grown = (record.grown ?? 0) + 1;
      } else if (line.end) {
        record.end = line.end;
      } else {
        record.finished = line.finished;
        record.kept = line.kept;
      }
    }
    record.seconds = (performance.now() - started) / 1000;
    see(record, made);
  });
}

/** One line of figures about a text. */
export function figures(record) {
  const nats = record.tokens.map((token) => token.nats).filter((value) => value != null);
  const parts = [count(record.tokens.length, "token")];
  if (nats.length) parts.push(`mean loss ${(nats.reduce((a, b) => a + b, 0) / nats.length).toFixed(2)} nats`);
  if (record.grown && record.seconds) parts.push(`${Math.round(record.grown / record.seconds).toLocaleString("en")} tokens/s`);
  parts.push(`seed ${record.seed}`);
  if (record.finished) parts.push(ENDS[record.finished]);
  return parts.join("\u00a0· ");
}

/** Mutes the tokens of the stop string, which is not part of the text. */
export function muteStop(place, record) {
  if (record.finished !== "stop") return;
  let length = 0;
  for (const [i, token] of record.tokens.entries()) {
    length += [...token.text].length;
    if (length > record.kept) place.nodes[i].classList.add("beyond");
  }
}

const plain = (record) => [...record.tokens.map((token) => token.text).join("")].slice(0, record.kept).join("");

/** The prompt before a text; a user's message is a paragraph of its own. */
export const promptOf = (record) => el("span", { className: "prompt" }, record.prompt + (record.chat ? "\n" : ""));

const showPrompt = (record) => $("generate-text").append(promptOf(record));

function show(record) {
  shown = record;
  closeInspector();
  text.clear();
  showPrompt(record);
  text.append(record.tokens, describeGenerated);
  finish(record);
  list();
}

function finish(record) {
  muteStop(text, record);
  $("generate-text").querySelector(".end")?.remove();
  if (record.finished === "end") {
    const end = el("button", { type: "button", className: "end", "aria-label": "End of the text, open its alternatives" }, "end of text");
    end.addEventListener("click", () => inspect(record.tokens.length, end));
    $("generate-text").append(end);
  }
  $("generate-status").textContent = figures(record);
  $("generate-onward").hidden = !record.tokens.length;
}

async function generate(record) {
  history.push(record);
  show(record);
  $("generate-text").setAttribute("aria-busy", "true");
  let first = true;
  await task.run(async (signal) => {
    await grow(record, signal, (_, made) => {
      if (shown !== record) return;
      if (first) text.clear(), showPrompt(record), first = false;
      text.append(made, describeGenerated, true);
      $("generate-status").textContent = figures(record);
    });
  });
  if (shown === record) {
    if (!record.finished) $("generate-status").textContent = `${figures(record)} · stopped`;
    else finish(record);
    $("generate-onward").hidden = !record.tokens.length;
    $("generate-text").removeAttribute("aria-busy");
  }
  list();
}

function start() {
  const model = currentModel();
  const options = sampling.ask();
  if (!options) return;
  const { seed, ...rest } = options;
  generate({
    model: model.name, prompt: $("generate-prompt").value, chat: model.chat && $("generate-chat").checked,
    options: rest, seed: seed ?? null, tokens: [], note: "",
  });
}

/** The panel of a token: its probability, and what else the model considered. */
function inspect(i, node) {
  const record = shown, token = i < record.tokens.length ? record.tokens[i] : { ...record.end, label: "end of text", id: null };
  if (!token?.alternatives) return;
  const chosen = token.id ?? token.alternatives.find((each) => each.nats.toFixed(3) === token.nats.toFixed(3))?.id;
  openInspector(node,
    el("h2", {}, el("code", {}, label(token)), token.id === null ? "" : el("small", {}, ` id ${token.id}`)),
    likelihood(token),
    bars(considered(token), chosen, (each) => branch(record, i, each)),
    el("p", { className: "hint" }, "Choose one, and the text continues from there."));
}

function branch(record, i, alternative) {
  closeInspector();
  const { nats, id, label: name } = alternative;
  const alternatives = record.tokens[i]?.alternatives ?? record.end.alternatives;
  const tokens = [...record.tokens.slice(0, i), { id, label: name, text: name, nats, alternatives, chosen: true }];
  generate({ ...record, tokens, finished: "", kept: undefined, end: null, grown: 0, note: `token ${i + 1}: ${label(alternative)}` })
    .then(() => text.nodes[i] && !document.activeElement?.closest("textarea, input") && text.moveTo(i));
}

function list() {
  $("generate-no-history").hidden = history.length > 0;
  $("generate-history").replaceChildren(...history.map((record, i) => {
    const words = record.note ? `↳ ${record.note}` : `${record.prompt.slice(0, 60) || "(no prompt)"}`;
    const details = `${count(record.tokens.length, "token")}, seed ${record.seed ?? "random"}${state.models.length > 1 ? `, ${record.model}` : ""}`;
    const button = el("button", { type: "button", onclick: () => { task.stop(); restore(record); } }, el("span", {}, words), el("small", {}, details));
    if (record === shown) button.setAttribute("aria-current", "true");
    return el("li", { value: i + 1 }, button);
  }).reverse());
}

function restore(record) {
  $("generate-prompt").value = record.prompt;
  $("model").value = record.model;
  $("model").dispatchEvent(new Event("change"));
  $("generate-chat").checked = record.chat;
  sampling.write({ ...record.options, seed: record.seed });
  show(record);
}

/** Opens another view with the shown text. */
function onward(view) {
  $(`${view}-text`).value = (shown.chat ? "" : shown.prompt) + plain(shown);
  location.hash = view;
  $(`${view}-form`).requestSubmit();
}

export function modelChanged() {
  const model = currentModel();
  $("generate-chat-label").hidden = !model.chat;
  $("generate-chat").checked = model.conversation;
  if (!$("generate-prompt").value) $("generate-prompt").value = model.prompt || "Once upon a time";
}

export function init() {
  task = new Task($("generate-stop"));
  text = new TokenText($("generate-text"), { open: inspect });
  sampling = new Sampling($("generate-options"), state.options);
  $("generate-legend").replaceChildren(legend());
  $("generate-form").addEventListener("submit", (event) => { event.preventDefault(); start(); });
  submitByKey($("generate-form"));
  $("generate-read").addEventListener("click", () => onward("read"));
  $("generate-attend").addEventListener("click", () => onward("attention"));
  $("generate-copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(shown.prompt + plain(shown));
    $("generate-status").textContent = "The text was copied.";
  });
  if (matchMedia("(max-width: 900px)").matches) $("generate-sampling").open = false;
  modelChanged();
}

export const stop = () => task.stop();
