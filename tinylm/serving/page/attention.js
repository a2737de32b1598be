// The view Attention: where a head looks, from one token and from all.

import { $, Task, count, currentModel, el, percent, request, submitByKey } from "./shared.js";
import { TokenText, label } from "./tokens.js";

let task, text, found = null, chosen = -1, asked = "";

function describe(token) { return ["seen", label(token)]; }

/** Shades the tokens by the weight that the token in row `i` gives them. */
function look(i) {
  if (!found || i === chosen) return;
  chosen = i;
  const row = found.weights[i];
  for (const [k, node] of text.nodes.entries()) {
    node.style.setProperty("--weight", k <= i ? row[k] : 0);
    node.classList.toggle("looking", k === i);
    node.classList.toggle("later", k > i);
  }
  const order = row.map((weight, k) => [weight, k]).sort((a, b) => b[0] - a[0]).slice(0, 5);
  $("attention-strongest").replaceChildren(
    el("p", {}, el("code", {}, label(found.tokens[i])), ` (token ${i + 1}) looks at`),
    el("ol", { className: "bars" }, ...order.map(([weight, k]) => {
      const fill = el("span", { className: "bar-fill" });
      fill.style.inlineSize = `${weight * 100}%`;
      return el("li", {}, el("span", { className: "bar-row" }, el("code", {}, label(found.tokens[k])),
        el("span", { className: "bar-track", "aria-hidden": "true" }, fill), el("span", { className: "number" }, percent(weight))));
    })));
  draw();
}

const LABELS = 88; // pixels beside the rows, where these are high enough for words

/** The width of the labels beside the matrix, in pixels. */
function labels() {
  const width = $("attention-matrix").parentElement.clientWidth;
  return (width - LABELS) / found.tokens.length >= 11 ? LABELS : 0;
}

/** The matrix: a row for each token that looks; the row of the chosen token is framed. */
function draw() {
  const canvas = $("attention-matrix"), size = found.tokens.length, width = canvas.parentElement.clientWidth;
  if (!width) return;
  const ratio = devicePixelRatio || 1, left = labels() * ratio, cell = (width * ratio - left) / size;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(width * ratio - left);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${width - labels()}px`;
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(canvas.parentElement).color;
  const edges = Array.from({ length: size + 1 }, (_, i) => Math.round(i * cell));
  for (const [t, row] of found.weights.entries()) {
    for (const [s, weight] of row.entries()) {
      context.globalAlpha = Math.sqrt(weight);
      context.fillRect(left + edges[s], edges[t], edges[s + 1] - edges[s], edges[t + 1] - edges[t]);
    }
  }
  context.globalAlpha = 1;
  if (left) {
    context.fillStyle = getComputedStyle(canvas).color;
    context.font = `${11 * ratio}px ${getComputedStyle(canvas).fontFamily}`;
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const [t, token] of found.tokens.entries()) {
      context.fillText(label(token).slice(0, 12), left - 6 * ratio, (edges[t] + edges[t + 1]) / 2, left - 10 * ratio);
    }
  }
  context.lineWidth = ratio;
  context.strokeStyle = getComputedStyle(canvas).color;
  if (chosen >= 0) context.strokeRect(ratio / 2, edges[chosen] + ratio / 2, canvas.width - ratio, Math.max(edges[chosen + 1] - edges[chosen] - ratio, 1));
}

function at(event) {
  const box = $("attention-matrix").getBoundingClientRect(), size = found.tokens.length;
  const place = (offset) => Math.min(Math.max(Math.floor(offset / box.height * size), 0), size - 1);
  return [place(event.clientY - box.top), place(event.clientX - box.left - labels())];
}

function start() {
  task.run(async (signal) => {
    const model = currentModel(), written = $("attention-text").value;
    const layer = Number($("attention-layer").value), head = Number($("attention-head").value);
    $("attention-status").textContent = "Looking …";
    try {
      found = await request("api/attention", { model: model.name, text: written, layer, head }, signal);
    } catch (error) {
      $("attention-status").textContent = "";
      throw error;
    }
    const keep = asked === model.name + written ? chosen : -1;
    asked = model.name + written;
    const part = found.tokens.length < found.total ? `the first ${found.tokens.length} of ` : "";
    const previous = found.previous === null ? "" : ` · ${percent(found.previous)} on the token before`;
    $("attention-status").textContent = `Layer ${layer}, head ${head} of ${model.name}: ${part}${count(found.total, "token")} · entropy ${found.entropy.toFixed(2)} nats${previous}`;
    $("attention-result").hidden = false;
    text.clear();
    text.append(found.tokens, describe);
    chosen = -1;
    look(keep >= 0 ? keep : found.tokens.length - 1);
  });
}

function fill(select, size) {
  const value = Math.min(Number(select.value || 0), size - 1);
  select.replaceChildren(...Array.from({ length: size }, (_, i) => el("option", { value: i }, String(i))));
  select.value = value;
}

export function modelChanged() {
  const model = currentModel();
  fill($("attention-layer"), model.layers);
  fill($("attention-head"), model.heads);
}

export function init() {
  task = new Task(null);
  text = new TokenText($("attention-tokens"), { open: look, focus: look });
  modelChanged();
  $("attention-text").value = "Once upon a time there was Noah. Noah was silly and noisy. Noah had a ball.";
  $("attention-form").addEventListener("submit", (event) => { event.preventDefault(); start(); });
  for (const part of ["layer", "head"]) $(`attention-${part}`).addEventListener("change", () => found && start());
  submitByKey($("attention-form"));
  const canvas = $("attention-matrix");
  canvas.addEventListener("pointermove", (event) => {
    const [t, s] = at(event), weight = found.weights[t][s];
    $("attention-cell").textContent = weight === undefined ? "A token does not look at later ones."
      : `${label(found.tokens[t])} looks at ${label(found.tokens[s])}: ${percent(weight)}`;
  });
  canvas.addEventListener("click", (event) => { const [t] = at(event); look(t); text.reach(t); });
}

export const resize = () => found && draw();
export const stop = () => task.stop();
