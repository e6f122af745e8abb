// Translations and summaries: a text on one side, a text on the other.

import { answer, curl, element, milliseconds, noted } from "/page.js";

const WORDS = {
  translate: {
    path: "/v1/translate",
    answers: "translations",
    made: "Translation",
    button: "Translate",
    hint: "Type or paste text. Each line is translated by itself.",
  },
  summarise: {
    path: "/v1/summarise",
    answers: "summaries",
    made: "Summary",
    button: "Summarise",
    hint: "Type or paste a text. All of it gets one summary.",
  },
};

export const id = "rewrite";
let words;

export function start(model) {
  words = WORDS[model.task];
  element("source").placeholder = words.hint;
  element("target-label").textContent = words.made;
  element("rewrite").querySelector(".primary").textContent = words.button;
  for (const option of element("beam").options) option.hidden = Number(option.value) > model.limits.beam_size;
}

function body() {
  const text = element("source").value;
  return {
    text: words.path === "/v1/translate" ? text.split("\n") : text,
    beam_size: Number(element("beam").value),
  };
}

export const command = () => curl(words.path, body());

export async function run() {
  const begin = performance.now();
  element("rewrite-note").textContent = "";
  const told = await answer(words.path, body());
  const answers = told[words.answers];
  element("target").textContent = answers.map((one) => one.text).join("\n");
  const { source_tokens, target_tokens } = told.usage;
  const took = [milliseconds(performance.now() - begin), `${source_tokens} → ${target_tokens} tokens`];
  element("rewrite-note").textContent = noted(took, answers.flatMap((one) => one.notes || []));
}
