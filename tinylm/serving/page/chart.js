// A line chart in SVG: axes, curves told apart by colour and dashes, and the values at a pointer.

import { el } from "./shared.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 320, LEFT = 58, RIGHT = 14, TOP = 12, BOTTOM = 40;
const DASHES = ["", "7 4", "2 3", "10 3 2 3"];

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function shortNumber(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return size !== 0 && size < 1e-3 ? value.toExponential(1) : String(+value.toPrecision(4));
}

/** Round values that divide a range into about `most` parts. */
function ticks(low, high, most, logarithmic) {
  if (logarithmic && high / low > 8) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const digit of high / low > 1e3 ? [1] : [1, 2, 5]) {
        const value = digit * 10 ** power;
        if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
      }
    }
    return found;
  }
  const rough = (high - low) / most || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((each) => each >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(+(i * step).toPrecision(12));
  return found;
}

function range(values, logarithmic, zero) {
  const usable = values.filter((value) => value !== null && Number.isFinite(value) && (!logarithmic || value > 0));
  let low = Math.min(...usable), high = Math.max(...usable);
  if (!usable.length) return null;
  if (zero && !logarithmic) low = Math.min(low, 0);
  if (low === high) [low, high] = logarithmic ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
  const margin = logarithmic || zero ? 0 : (high - low) * 0.04;
  return [low - margin, high + margin];
}

const scale = ([low, high], logarithmic, from, to) => {
  const map = logarithmic ? Math.log : (value) => value;
  return (value) => from + (map(value) - map(low)) / (map(high) - map(low)) * (to - from);
};

const curveNumber = (curve, curves) => curve.number ?? curves.indexOf(curve);

/** A curve of its own colour and dashes; colours repeat after six, and with the dashes after twelve. */
const line = (curve, curves, path) => svg("path", {
  class: `curve curve-${curveNumber(curve, curves) % 6}`, d: path, "stroke-dasharray": DASHES[curveNumber(curve, curves) % DASHES.length],
});

/** Draws curves {name, steps, values} into a place. */
export function draw(place, curves, { x, y, label, logX = false, logY = false }) {
  const width = Math.max(place.clientWidth, 260);
  const filled = curves.filter((curve) => curve.steps.length);
  const xs = range(filled.flatMap((curve) => curve.steps), logX, true), ys = range(filled.flatMap((curve) => curve.values), logY, false);
  if (!xs || !ys) {
    place.replaceChildren(el("p", { className: "hint" }, "There are no points to draw yet."));
    return;
  }
  const across = scale(xs, logX, LEFT, width - RIGHT), down = scale(ys, logY, HEIGHT - BOTTOM, TOP);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": `${label}: ${curves.map((curve) => curve.name).join(", ")}` });
  for (const value of ticks(...ys, 6, logY)) {
    picture.append(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: down(value), y2: down(value) }),
      svg("text", { x: LEFT - 8, y: down(value) + 4, "text-anchor": "end" }, shortNumber(value)));
  }
  for (const value of ticks(...xs, width < 500 ? 4 : 8, logX)) {
    picture.append(svg("text", { x: across(value), y: HEIGHT - BOTTOM + 20, "text-anchor": "middle" }, shortNumber(value)));
  }
  picture.append(svg("text", { class: "axis", x: width - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, x),
    svg("line", { class: "base", x1: LEFT, x2: width - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }));
  filled.forEach((curve) => {
    let path = "", pen = false;
    curve.steps.forEach((step, i) => {
      const value = curve.values[i];
      if (value === null || (logY && value <= 0) || (logX && step <= 0)) { pen = false; return; }
      path += `${pen ? "L" : "M"}${across(step).toFixed(1)} ${down(value).toFixed(1)}`;
      pen = true;
    });
    picture.append(line(curve, curves, path));
    if (curve.steps.length <= 40) {
      curve.steps.forEach((step, i) => curve.values[i] === null || (logY && curve.values[i] <= 0) || (logX && step <= 0)
        || picture.append(svg("circle", { class: `dot dot-${curveNumber(curve, curves) % 6}`, cx: across(step), cy: down(curve.values[i]), r: 2.5 })));
    }
  });
  const pointer = svg("line", { class: "pointer", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  picture.append(pointer);
  const words = el("p", { className: "hint values" }, el("span", { className: "unit" }, y));
  picture.addEventListener("pointermove", (event) => {
    const place = event.clientX - picture.getBoundingClientRect().left;
    const nearest = filled.map((curve) => {
      const i = curve.steps.reduce((best, step, k) => Math.abs(across(step) - place) < Math.abs(across(curve.steps[best]) - place) ? k : best, 0);
      return [curve, i];
    });
    const step = nearest[0][0].steps[nearest[0][1]];
    pointer.setAttribute("x1", across(step));
    pointer.setAttribute("x2", across(step));
    pointer.setAttribute("visibility", "visible");
    words.textContent = `${x} ${step.toLocaleString("en")}: ${nearest.map(([curve, i]) => `${curve.name} ${curve.values[i] === null ? "not finite" : shortNumber(curve.values[i])}`).join(", ")}`;
  });
  picture.addEventListener("pointerleave", () => { pointer.setAttribute("visibility", "hidden"); words.replaceChildren(el("span", { className: "unit" }, y)); });
  const key = el("ul", { className: "key" }, ...curves.map((curve) => {
    return el("li", {}, svg("svg", { width: 28, height: 10, "aria-hidden": "true" }, line(curve, curves, "M1 5H27")), curve.name);
  }));
  place.replaceChildren(words, picture, key);
}
