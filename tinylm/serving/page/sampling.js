// The sampling controls, made from the server's list of options.

import { el, showProblem } from "./shared.js";

const FIRST = ["max_new_tokens", "temperature", "top_k", "top_p", "seed"];
const HINTS = { strings: "One per line; \\n is a line break.", tokens: "Token ids, separated by spaces.", bias: "Id and value, one pair per line: 42 -1.5" };
const words = (name) => name[0].toUpperCase() + name.slice(1).replaceAll("_", " ").replace(/ (k|p)$/, "-$1");

const shown = { strings: (value) => value.join("\n"), tokens: (value) => value.join(" "), bias: () => "" };

function number(text, name) {
  const value = Number(text);
  if (!Number.isFinite(value)) throw new Error(`${words(name)} must be a number, got ${text}`);
  if (Number.isInteger(value) && !Number.isSafeInteger(value)) throw new Error(`${words(name)} must be below 2^53 on this page, got ${text}`);
  return value;
}

const read = {
  strings: (text) => text.split("\n").filter(Boolean).map((line) => line.replaceAll("\\n", "\n").replaceAll("\\t", "\t")),
  tokens: (text, name) => text.split(/[\s,]+/).filter(Boolean).map((each) => number(each, name)),
  bias: (text, name) => Object.fromEntries(text.split("\n").filter((line) => line.trim()).map((line) => {
    const [id, value] = line.trim().split(/[\s:,]+/);
    return [number(id, name), number(value, name)];
  })),
};

/** A form of sampling controls in a place, each with its default and its help. */
export class Sampling {
  constructor(place, options) {
    this.options = options;
    this.inputs = new Map();
    const prefix = place.id;
    const field = (option) => {
      const id = `${prefix}-${option.name}`, help = `${id}-help`, list = option.kind in read;
      const input = list ? el("textarea", { id, rows: 2, spellcheck: false }) : el("input", { id, inputMode: "decimal", autocomplete: "off" });
      input.placeholder = option.default === null ? (option.name === "seed" ? "random" : "off") : "";
      input.setAttribute("aria-describedby", help);
      this.inputs.set(option.name, input);
      return el("div", { className: "field" }, el("label", { for: id }, words(option.name)), input,
        el("small", { id: help }, option.help + (list ? ` ${HINTS[option.kind]}` : "")));
    };
    const first = FIRST.map((name) => options.find((each) => each.name === name)).filter(Boolean);
    const rest = options.filter((each) => !FIRST.includes(each.name));
    place.replaceChildren(el("div", { className: "fields" }, ...first.map(field)),
      el("details", {}, el("summary", {}, "More controls"), el("div", { className: "fields" }, ...rest.map(field))),
      el("button", { type: "button", className: "quiet", onclick: () => this.reset() }, "Restore the defaults"));
    this.reset();
  }

  reset() { this.write({}); }

  /** Shows values; options that are not among them get their defaults. */
  write(values) {
    for (const { name, kind, default: standard } of this.options) {
      const value = values[name] ?? standard;
      const bias = kind === "bias" && value ? Object.entries(value).map((pair) => pair.join(" ")).join("\n") : "";
      this.inputs.get(name).value = value === null ? "" : kind === "bias" ? bias : shown[kind] ? shown[kind](value) : String(value);
    }
  }

  /** The values that differ from the defaults; null, and the problem shown, if one cannot be read. */
  ask() {
    try {
      return this.read();
    } catch (error) {
      showProblem(error.message);
      return null;
    }
  }

  /** The values that differ from the defaults. */
  read() {
    const values = {};
    for (const { name, kind, default: standard } of this.options) {
      const text = this.inputs.get(name).value.trim() && this.inputs.get(name).value;
      if (text === "") {
        if (typeof standard === "number") throw new Error(`${words(name)} must have a value, such as ${standard}`);
        continue;
      }
      const value = kind in read ? read[kind](text, name) : number(text.trim(), name);
      if (JSON.stringify(value) !== JSON.stringify(standard)) values[name] = value;
    }
    return values;
  }
}
