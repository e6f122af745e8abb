// A conversation. The server remembers nothing: all of it goes along each time.

import { ask, curl, element, events, make, noted, sampling, speed } from "/page.js";

const PATH = "/v1/chat/completions";
const NAMES = { user: "You", assistant: "Model" };

export const id = "chat";
let messages = [];
let abort = null;

export function start(model) {
  element("chat-max-tokens").max = Math.min(model.limits.new_tokens, model.max_len);
  element("chat-max-tokens").value = Math.min(model.limits.new_tokens, Math.floor(model.max_len / 2), 128);
  element("chat-halt").addEventListener("click", () => abort?.abort());
  element("chat-clear").addEventListener("click", clear);
  element("message").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    element("chat").requestSubmit();
  });
}

function clear() {
  abort?.abort();
  messages = [];
  element("said").replaceChildren();
  element("chat-note").textContent = "";
  element("message").focus();
}

function body(said) {
  const system = element("system").value.trim();
  return {
    messages: [...(system ? [{ role: "system", content: system }] : []), ...said],
    ...sampling("chat"),
    truncation: "auto",
  };
}

const question = () => ({ role: "user", content: element("message").value.trim() || "Hello" });

export const command = () => curl(PATH, { ...body([...messages, question()]), stream: true }, "curl -N");

function say(role, content) {
  const bubble = make("div", "", `bubble ${role}`);
  const text = make("div", content, "words");
  bubble.append(make("span", NAMES[role], "who"), text);
  text.dir = "auto";
  element("said").append(bubble);
  bubble.scrollIntoView({ block: "nearest" });
  return text;
}

export async function run() {
  if (element("message").value.trim() === "") return;
  const asked = question();
  say(asked.role, asked.content);
  const words = say("assistant", "");
  element("message").value = "";
  element("chat-note").textContent = "";
  abort = new AbortController();
  element("chat-halt").disabled = false;
  try {
    await listen([...messages, asked], words);
  } catch (error) {
    if (error.name === "AbortError") element("chat-note").textContent = "stopped";
    else takeBack(asked, words);
    throw error;
  } finally {
    element("chat-halt").disabled = true;
    if (words.isConnected) remember(asked, words);
    element("message").focus();
  }
}

function remember(asked, words) {
  const content = words.textContent;
  if (content.trim()) messages.push(asked, { role: "assistant", content });
  else words.textContent = "(no answer)";
}

// What failed is not part of the conversation; its words go back to where they can be mended.
function takeBack(asked, words) {
  words.parentElement.previousElementSibling.remove();
  words.parentElement.remove();
  element("message").value = asked.content;
}

async function listen(said, words) {
  const begin = performance.now();
  const asked = { ...body(said), stream: true, stream_options: { include_usage: true } };
  let first = null;
  for await (const event of events(await ask(PATH, asked, abort.signal))) {
    first ??= performance.now() - begin;
    for (const choice of event.choices) words.append(choice.delta.content || "");
    words.scrollIntoView({ block: "nearest" });
    if (event.usage) {
      const took = speed(event.usage.completion_tokens, first, performance.now() - begin);
      element("chat-note").textContent = noted([took], event.notes);
    }
  }
}
