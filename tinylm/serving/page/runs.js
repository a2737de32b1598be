// The view Runs: curves of runs, asked for again while the view is open.

import { $, count, el, problemOf, request, showProblem } from "./shared.js";
import { draw, shortNumber } from "./chart.js";

const EVERY = 2000; // ms
const PREFERRED = ["val/loss", "train/loss"];
const curves = new Map(); // "run metric" -> { version, steps, values }
const hidden = new Set();
let runs = [], folders = [], open = false, timer = null, numbers = new Map();

/** Exponential moving average, normalized, so that it has no start-up bias. */
function smoothed(values, keep) {
  let mean = 0, weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = keep * mean + value;
    weight = keep * weight + 1;
    return mean / weight;
  });
}

const metric = () => $("runs-metric").value;
const wanted = () => runs.filter((run) => run.metrics.includes(metric()));

async function update() {
  const found = await request("api/runs");
  runs = found.runs;
  folders = found.folders;
  for (const run of runs) if (!numbers.has(run.name)) numbers.set(run.name, numbers.size);
  if (!hidden.size && !curves.size) for (const run of runs.slice(6)) hidden.add(run.name);
  fillMetrics();
  const asked = wanted().filter((run) => !hidden.has(run.name)).map((run) => [run, metric()]);
  if (metric() === "val/loss" && wanted()[0]?.metrics.includes("val/floor")) asked.push([wanted()[0], "val/floor"]);
  await Promise.all(asked.map(async ([run, name]) => {
    const key = `${run.name} ${name}`;
    if (curves.get(key)?.version === run.version) return;
    const query = new URLSearchParams({ run: run.name, metric: name });
    curves.set(key, { version: run.version, ...await request(`api/curve?${query}`) });
  }));
  show();
  const growing = runs.filter((run) => !run.finished).length;
  $("runs-status").textContent = runs.length
    ? `${count(runs.length, "run")} in ${folders.join(", ")}; ${growing ? `${growing} unfinished` : "all finished"}. Asked again every ${EVERY / 1000} seconds.`
    : `There are no runs in ${folders.join(", ")} yet. Train one: tinylm fit -c tiny`;
}

function fillMetrics() {
  const names = [...new Set(runs.flatMap((run) => run.metrics))].sort();
  const select = $("runs-metric"), before = select.value;
  if (names.join() === [...select.options].map((each) => each.value).join()) return;
  select.replaceChildren(...names.map((name) => el("option", {}, name)));
  select.value = names.includes(before) ? before : PREFERRED.find((name) => names.includes(name)) ?? names[0] ?? "";
}

function show() {
  const keep = Number($("runs-smooth").value);
  const shown = wanted().filter((run) => !hidden.has(run.name)).map((run) => {
    const { steps = [], values = [] } = curves.get(`${run.name} ${metric()}`) ?? {};
    return { name: run.name, number: numbers.get(run.name), steps, values: keep ? smoothed(values, keep) : values };
  });
  const floor = metric() === "val/loss" && curves.get(`${wanted()[0]?.name} val/floor`);
  if (floor && floor.steps.length) shown.push({ name: "floor", number: 11, ...floor });
  draw($("runs-chart"), shown, { x: "step", y: metric(), label: `${metric()} against steps`, logX: $("runs-log-x").checked, logY: $("runs-log-y").checked });
  table();
}

function table() {
  $("runs-table").tHead.replaceChildren(el("tr", {}, ...["Run", "State", "Step", `Last ${metric()}`].map((name) => el("th", { scope: "col" }, name))));
  const rows = runs.map((run) => {
    const box = el("input", { type: "checkbox", checked: !hidden.has(run.name), onchange: () => { hidden[box.checked ? "delete" : "add"](run.name); poll(); } });
    const values = curves.get(`${run.name} ${metric()}`)?.values ?? [], last = values.at(-1);
    const state = run.problem ?? (run.finished ? "finished" : "unfinished");
    const steps = run.step.toLocaleString("en") + (run.planned > 0 ? ` of ${run.planned.toLocaleString("en")}` : "");
    return el("tr", {}, el("th", { scope: "row" }, el("label", { className: "check" }, box, run.name)), el("td", {}, state), el("td", {}, steps), el("td", {}, last == null ? "–" : shortNumber(last)));
  });
  const focused = document.activeElement?.closest("#runs-table") ? [...$("runs-table").querySelectorAll("input")].indexOf(document.activeElement) : -1;
  $("runs-table").tBodies[0].replaceChildren(...rows);
  if (focused >= 0) $("runs-table").querySelectorAll("input")[focused]?.focus();
}

async function poll() {
  clearTimeout(timer);
  try {
    await update();
    showProblem();
  } catch (error) {
    showProblem(problemOf(error));
  }
  clearTimeout(timer);
  if (open) timer = setTimeout(() => document.hidden ? (timer = setTimeout(poll, EVERY)) : poll(), EVERY);
}

export function opened(now) {
  open = now;
  clearTimeout(timer);
  if (open) poll();
}

export function init() {
  $("runs-form").addEventListener("submit", (event) => event.preventDefault());
  $("runs-metric").addEventListener("change", poll);
  for (const id of ["runs-log-x", "runs-log-y", "runs-smooth"]) $(id).addEventListener("input", show);
}

export const resize = () => open && runs.length && show();
