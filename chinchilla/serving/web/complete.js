// A prompt and what a model goes on to write.

import { ask, curl, element, events, make, sampling, speed } from "/page.js";

const PATH = "/v1/completions";

export const id = "complete";
let abort = null;

export function start(model) {
  element("complete-max-tokens").max = Math.min(model.limits.new_tokens, model.max_len);
  element("halt").addEventListener("click", () => abort?.abort());
}

function body() {
  const asked = { prompt: element("prompt").value, ...sampling("complete") };
  if (element("stop").value !== "") asked.stop = element("stop").value;
  return asked;
}

export const command = () => curl(PATH, { ...body(), stream: true }, "curl -N");

export async function run() {
  const begin = performance.now();
  const output = element("continuation");
  const note = element("complete-note");
  const text = make("span");
  output.replaceChildren(make("span", element("prompt").value, "given"), text);
  note.textContent = "";
  abort = new AbortController();
  element("halt").disabled = false;
  let first = null;
  try {
    const asked = { ...body(), stream: true, stream_options: { include_usage: true } };
    for await (const event of events(await ask(PATH, asked, abort.signal))) {
      first ??= performance.now() - begin;
      for (const choice of event.choices) text.append(choice.text);
      output.scrollTop = output.scrollHeight;
      if (event.usage) note.textContent = speed(event.usage.completion_tokens, first, performance.now() - begin);
    }
  } catch (error) {
    if (error.name === "AbortError") note.textContent = "stopped";
    throw error;
  } finally {
    element("halt").disabled = true;
  }
}
