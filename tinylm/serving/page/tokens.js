// A text as tokens: their colours, the legend, moving among them by keys, and the panel of alternatives.

import { $, el, percent } from "./shared.js";

// Least probability of each shade. The shade is a tint and an underline, so that it does not rest on colour alone.
const SHADES = [0.9, 0.5, 0.2, 0.05, 0];
const NATS = SHADES.slice(0, -1).map((p) => -Math.log(p));

export const shade = (p) => SHADES.findIndex((least) => p >= least);

/** The legend of the shades, in probabilities or in nats. */
export function legend(unit = "probability") {
  const names = unit === "probability"
    ? ["90% and more", "50 to 90%", "20 to 50%", "5 to 20%", "below 5%"]
    : SHADES.map((_, i) => i === 0 ? `below ${NATS[0].toFixed(1)}` : i === 4 ? `above ${NATS[3].toFixed(1)}`
      : `${NATS[i - 1].toFixed(1)} to ${NATS[i].toFixed(1)}`);
  const title = unit === "probability" ? "Probability of each token" : `${unit} of each token, in nats`;
  const list = el("ul", { className: "legend", "aria-label": title });
  list.append(...names.map((name, i) => el("li", {}, el("span", { className: `token shade-${i}` }, el("span", { className: "core" }, " abc ")), name)));
  return el("div", {}, el("p", { className: "hint" }, title), list);
}

const mark = (text) => el("span", { className: "mark", "aria-hidden": "true" }, text);

/** The characters of a token; line breaks, tabs and control characters are visible. A space before a word has no tint. */
function spelled(token) {
  const core = (...parts) => el("span", { className: "core" }, ...parts);
  if (token.text === "") return [core(el("span", { className: "half", "aria-hidden": "true" }))]; // part of a character
  if (token.special) return [core(mark(token.text))];
  const word = token.text.trimStart().length ? token.text.replace(/^ +/, "") : token.text;
  const parts = word.split(/([\u0000-\u001f\u007f])/).filter(Boolean).map((part) => {
    if (part === "\n") return el("span", {}, mark("↵"), "\n");
    if (part === "\t") return el("span", {}, mark("→"), "\t");
    const code = part.charCodeAt(0);
    return code < 32 || code === 127 ? mark(`^${String.fromCharCode(code ^ 64)}`) : part;
  });
  return [token.text.slice(0, token.text.length - word.length), core(...parts)];
}

/** The line of the panel that says how likely a token was. */
export const likelihood = (token) => el("p", {}, `probability ${percent(Math.exp(-token.nats))}, loss ${token.nats.toFixed(2)} nats`);

/** A label with visible spaces, for lists. */
export const label = (token) => token.label.replaceAll(" ", "␣");

/** A text of tokens in an element: one tab stop, arrow keys from token to token, `open` on click or Enter. */
export class TokenText {
  constructor(place, { open = () => {}, focus = () => {} } = {}) {
    this.place = place;
    this.tokens = [];
    this.nodes = [];
    const index = (event) => this.nodes.indexOf(event.target.closest(".token"));
    const call = (action) => (event) => { const i = index(event); if (i >= 0) action(i, this.nodes[i]); };
    place.addEventListener("click", call((i, node) => { this.moveTo(i); open(i, node); }));
    place.addEventListener("pointerover", call(focus));
    place.addEventListener("focusin", call((i, node) => { this.reach(i); focus(i, node); }));
    place.addEventListener("keydown", (event) => {
      const i = index(event);
      if (i < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
      const last = this.nodes.length - 1;
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: last, ArrowDown: this.below(i, 1), ArrowUp: this.below(i, -1) }[event.key];
      if (to !== undefined) this.moveTo(Math.min(Math.max(to, 0), last));
      else if (event.key === "Enter" || event.key === " ") open(i, this.nodes[i]);
      else return;
      event.preventDefault();
    });
  }

  clear() {
    this.tokens = [];
    this.nodes = [];
    this.place.replaceChildren();
  }

  /** Appends tokens; `describe(token)` gives [class, label]. With `follow`, a reader at the end stays there. */
  append(tokens, describe, follow = false) {
    const made = tokens.map((token) => {
      const [className, words] = describe(token);
      return el("span", { className: `token ${className}`, role: "button", tabIndex: -1, "aria-label": words }, ...spelled(token));
    });
    if (!this.nodes.length && made.length) made[0].tabIndex = 0;
    const { place } = this;
    const atEnd = place.scrollTop + place.clientHeight >= place.scrollHeight - 4;
    this.tokens.push(...tokens);
    this.nodes.push(...made);
    place.append(...made);
    if (follow && atEnd) place.scrollTop = place.scrollHeight;
  }

  /** Makes a token the text's one tab stop. */
  reach(i) {
    for (const node of this.place.querySelectorAll('.token[tabindex="0"]')) node.tabIndex = -1;
    this.nodes[i].tabIndex = 0;
  }

  moveTo(i) {
    this.reach(i);
    this.nodes[i].focus();
  }

  /** The token nearest below (or above) another one. */
  below(i, direction) {
    const middle = (node) => { const box = node.getClientRects()[0]; return [box.left + box.width / 2, box.top]; };
    const [x, y] = middle(this.nodes[i]);
    let best = i, distance = Infinity;
    for (let k = i + direction; k >= 0 && k < this.nodes.length; k += direction) {
      const [left, top] = middle(this.nodes[k]);
      const down = (top - y) * direction;
      if (down < 4) continue;
      if (distance < Infinity && Math.abs(top - middle(this.nodes[best])[1]) > 4) break;
      if (Math.abs(left - x) < distance) [best, distance] = [k, Math.abs(left - x)];
    }
    return best;
  }
}

/** Class and label of a generated token. */
export function describeGenerated(token) {
  if (token.nats === null) return ["given", `${token.label}, given`];
  const p = Math.exp(-token.nats);
  return [`shade-${shade(p)}`, `${label(token)}, probability ${percent(p)}`];
}

/** What the model considered for a token: the most likely ones, and the one in the text. */
export function considered(token) {
  const { id, label, nats } = token;
  const listed = id === null || token.alternatives.some((each) => each.id === id);
  return [...token.alternatives, ...listed ? [] : [{ id, label, nats }]].map((each) => ({ ...each, p: Math.exp(-each.nats) }));
}

/** Rows of the most likely tokens, with bars; `choose(alternative)` makes them buttons. */
export function bars(alternatives, chosen, choose) {
  const most = Math.max(...alternatives.map((each) => each.p));
  return el("ol", { className: "bars" }, ...alternatives.map((each) => {
    const bar = el("span", { className: "bar-fill" });
    bar.style.inlineSize = `${each.p / most * 100}%`;
    const parts = [el("code", {}, label(each)), el("span", { className: "bar-track", "aria-hidden": "true" }, bar), el("span", { className: "number" }, percent(each.p))];
    const current = each.id === chosen;
    if (!choose) return el("li", {}, el("span", { className: `bar-row${current ? " chosen" : ""}` }, ...parts));
    const words = `${label(each)}, ${percent(each.p)}${current ? ", in the text" : ""}`;
    return el("li", {}, el("button", { type: "button", className: `bar-row${current ? " chosen" : ""}`, "aria-label": words, onclick: () => choose(each) }, ...parts));
  }));
}

let opener = null;

/** Opens the panel beside a token. Escape, or a click elsewhere, closes it. */
export function openInspector(node, ...content) {
  closeInspector();
  opener = node;
  node.classList.add("open");
  const panel = $("inspector");
  panel.replaceChildren(...content, el("button", { type: "button", className: "quiet close", "aria-label": "Close", onclick: () => closeInspector(true) }, "×"));
  panel.hidden = false;
  const box = node.getClientRects()[0], width = panel.offsetWidth, height = panel.offsetHeight;
  const left = Math.min(Math.max(box.left, 12), document.documentElement.clientWidth - width - 12);
  const below = box.bottom + 8 + height < innerHeight || box.top < height + 16;
  panel.style.left = `${left + scrollX}px`;
  panel.style.top = `${(below ? box.bottom + 8 : box.top - height - 8) + scrollY}px`;
  panel.querySelector("button").focus({ preventScroll: true });
}

export const inspectorIsOpen = () => !$("inspector").hidden;

export function closeInspector(back = false) {
  $("inspector").hidden = true;
  opener?.classList.remove("open");
  if (back) opener?.focus();
  opener = null;
}

/** Arrow keys within the panel; Tab out of it closes it. */
export function startInspector() {
  const panel = $("inspector");
  panel.addEventListener("keydown", (event) => {
    const buttons = [...panel.querySelectorAll("button")];
    const i = buttons.indexOf(document.activeElement);
    const to = { ArrowDown: i + 1, ArrowUp: i - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    buttons[(to + buttons.length) % buttons.length].focus();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!panel.contains(event.target) && !event.target.closest?.(".token")) closeInspector();
  });
}
