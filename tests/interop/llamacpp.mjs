// Runs llama.cpp: token ids of texts, and greedy completions of prompts given as ids.
// node llamacpp.mjs request.json answer.json, beside the node_modules that has node-llama-cpp
import {readFileSync, writeFileSync} from "node:fs";
import {getLlama} from "node-llama-cpp";

const {path, prompts, count, texts} = JSON.parse(readFileSync(process.argv[2], "utf8"));
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, logLevel: "error"});
const model = await llama.loadModel({modelPath: path, useMmap: false});
const ids = texts.map((text) => [...model.tokenize(text, false)]);
const completions = [];
for (const prompt of prompts) {
  const context = await model.createContext({
    contextSize: 256, flashAttention: false, threads: 1,
    experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
  });
  const found = [];
  for await (const token of context.getSequence().evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
    found.push(token);
    if (found.length === count) break;
  }
  completions.push(found);
  await context.dispose();
}
const {bos, eos, shouldPrependBosToken} = model.tokens;
const begins = shouldPrependBosToken;
const template = model.fileInfo.metadata.tokenizer.chat_template ?? null;
writeFileSync(process.argv[3], JSON.stringify({ids, completions, bos, eos, begins, template}));
process.exit(0);
