// The view Compare: two models on one prompt and one seed.

import { $, Task, count, el, state, submitByKey } from "./shared.js";
import { TokenText, bars, considered, describeGenerated, label, legend, likelihood, openInspector } from "./tokens.js";
import { figures, grow, muteStop, promptOf } from "./generate.js";
import { Sampling } from "./sampling.js";

let sampling, task, texts;
const records = [null, null];

function inspect(side, i, node) {
  const token = records[side].tokens[i];
  openInspector(node, el("h2", {}, el("code", {}, label(token)), el("small", {}, ` id ${token.id}`)),
    likelihood(token),
    bars(considered(token), token.id));
}

async function one(side, record, signal) {
  const text = texts[side];
  text.clear();
  text.place.append(promptOf(record));
  records[side] = record;
  await grow(record, signal, (_, made) => {
    text.append(made, describeGenerated, true);
    $(`compare-figures-${side}`).textContent = figures(record);
  });
  muteStop(text, record);
}

/** Says where the texts part, and marks the token there in both. */
function compare() {
  const [left, right] = records.map((record) => record.tokens.map((token) => token.text).join(""));
  if (left === right) return "Both texts are the same.";
  let same = 0;
  while (same < left.length && left[same] === right[same]) same += 1;
  records.forEach((record, side) => {
    let length = 0;
    const i = record.tokens.findIndex((token) => (length += token.text.length) > same);
    texts[side].nodes[i]?.classList.add("parts");
  });
  return same ? `The texts agree on ${count(same, "character")} and part at the framed tokens.` : "The texts part at once.";
}

function start() {
  const options = sampling.ask();
  if (!options) return;
  const { seed = crypto.getRandomValues(new Uint32Array(1))[0], ...rest } = options;
  $("compare-status").textContent = `Both grow with seed ${seed}.`;
  task.run(async (signal) => {
    const made = [0, 1].map((side) => {
      const name = $(`compare-model-${side}`).value, model = state.models.find((each) => each.name === name);
      return one(side, { model: name, prompt: $("compare-prompt").value, chat: model.conversation, options: rest, seed, tokens: [] }, signal);
    });
    await Promise.all(made);
    $("compare-status").textContent = compare();
  });
}

export function init() {
  task = new Task($("compare-stop"));
  sampling = new Sampling($("compare-options"), state.options);
  texts = [0, 1].map((side) => new TokenText($(`compare-text-${side}`), { open: (i, node) => inspect(side, i, node) }));
  for (const side of [0, 1]) {
    $(`compare-model-${side}`).replaceChildren(...state.models.map((each) => el("option", {}, each.name)));
    $(`compare-model-${side}`).selectedIndex = Math.min(side, state.models.length - 1);
  }
  if (state.models.length === 1) {
    $("compare-status").textContent = "There is one model, so both texts will be the same. Start with two: tinylm play --model runs/small --model runs/tiny";
  }
  $("compare-legend").replaceChildren(legend());
  $("compare-prompt").value = state.models[0].prompt || "Once upon a time";
  $("compare-form").addEventListener("submit", (event) => { event.preventDefault(); start(); });
  submitByKey($("compare-form"));
}

export const stop = () => task.stop();
