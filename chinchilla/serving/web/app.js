// The page of `chinchilla serve`. Text from people and models only ever enters the page as text, never as markup.

const element = (id) => document.getElementById(id);
const state = { model: null, abort: null };

async function ask(path, body, signal) {
  const options = body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  };
  const response = await fetch(path, options || { signal });
  if (response.ok) return response;
  let message = `the server answered ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Not one of the server's own errors: the status must do.
  }
  throw new Error(message);
}

function complain(error) {
  const alert = element("alert");
  alert.hidden = !error;
  alert.textContent = error ? error.message : "";
}

// What the model is

function short(value) {
  for (const [size, suffix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size) return `${Number((value / size).toPrecision(3))} ${suffix}`;
  }
  return String(Number(value.toPrecision(3)));
}

const SCORE_NAMES = { bleu: "BLEU", chrf: "chrF", bits_per_byte: "bits a byte", perplexity: "perplexity" };

function facts(model) {
  const scores = Object.entries(model.metrics).map(([name, value]) => [SCORE_NAMES[name] || name, short(value)]);
  return [
    ["parameters", short(model.num_params)],
    ["size", `${short(model.size_bytes)}B`],
    ["weights", model.precision],
    ["longest", `${model.max_len} tokens`],
    ...scores,
  ];
}

function showModel(model) {
  state.model = model;
  element("name").textContent = model.id;
  document.title = `${model.id} · Chinchilla`;
  element("facts").replaceChildren(
    ...facts(model).map(([name, value]) => {
      const fact = document.createElement("div");
      for (const [tag, text] of [["dt", name], ["dd", value]]) {
        fact.appendChild(document.createElement(tag)).textContent = text;
      }
      return fact;
    }),
  );
  for (const option of element("beam").options) option.hidden = Number(option.value) > model.limits.beam_size;
  element("max-tokens").max = Math.min(model.limits.new_tokens, model.max_len);
  element(model.task === "translate" ? "translate" : "complete").hidden = false;
  element("command").hidden = false;
  showCommand();
}

function showState(good, text) {
  element("dot").className = good ? "dot good" : "dot bad";
  element("state").textContent = text;
}

// What is asked of it

function translateBody() {
  return {
    text: element("source").value.split("\n"),
    beam_size: Number(element("beam").value),
  };
}

function completeBody() {
  const body = {
    prompt: element("prompt").value,
    max_tokens: Number(element("max-tokens").value),
    temperature: Number(element("temperature").value),
    top_p: Number(element("top-p").value),
    top_k: Number(element("top-k").value),
  };
  if (element("seed").value !== "") body.seed = Number(element("seed").value);
  if (element("stop").value !== "") body.stop = element("stop").value;
  return body;
}

function showCommand() {
  const translates = state.model.task === "translate";
  const path = translates ? "/v1/translate" : "/v1/completions";
  const body = JSON.stringify(translates ? translateBody() : { ...completeBody(), stream: true });
  const quoted = `'${body.replaceAll("'", "'\\''")}'`;
  const flags = translates ? "curl" : "curl -N";
  element("curl").textContent =
    `${flags} ${location.origin}${path} \\\n  -H 'Content-Type: application/json' \\\n  -d ${quoted}`;
}

// Answers

const milliseconds = (time) => (time < 1000 ? `${Math.round(time)} ms` : `${(time / 1000).toFixed(1)} s`);

async function working(form, work) {
  const button = form.querySelector(".primary");
  complain(null);
  button.disabled = true;
  form.classList.add("busy");
  form.setAttribute("aria-busy", "true");
  try {
    await work();
  } catch (error) {
    if (error.name !== "AbortError") complain(error);
  } finally {
    button.disabled = false;
    form.classList.remove("busy");
    form.removeAttribute("aria-busy");
  }
}

async function translate() {
  const start = performance.now();
  element("translate-note").textContent = "";
  const answer = await (await ask("/v1/translate", translateBody())).json();
  element("target").textContent = answer.translations.map((translation) => translation.text).join("\n");
  const { source_tokens, target_tokens } = answer.usage;
  element("translate-note").textContent =
    `${milliseconds(performance.now() - start)} · ${source_tokens} → ${target_tokens} tokens`;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const whole = held.split("\n\n");
    held = whole.pop();
    for (const event of whole) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function complete() {
  const start = performance.now();
  const output = element("continuation");
  const note = element("complete-note");
  const text = document.createElement("span");
  const given = document.createElement("span");
  given.className = "given";
  given.textContent = element("prompt").value;
  output.replaceChildren(given, text);
  note.textContent = "";
  state.abort = new AbortController();
  element("halt").disabled = false;
  let first = null;
  try {
    const body = { ...completeBody(), stream: true, stream_options: { include_usage: true } };
    for await (const event of events(await ask("/v1/completions", body, state.abort.signal))) {
      if (event.error) throw new Error(event.error.message);
      first ??= performance.now() - start;
      for (const choice of event.choices) text.append(choice.text);
      output.scrollTop = output.scrollHeight;
      if (event.usage) note.textContent = speed(event.usage.completion_tokens, first, performance.now() - start);
    }
  } catch (error) {
    if (error.name === "AbortError") note.textContent = "stopped";
    throw error;
  } finally {
    element("halt").disabled = true;
  }
}

function speed(tokens, first, total) {
  const rate = total > 0 ? Math.round((1000 * tokens) / total) : 0;
  return `${tokens} tokens in ${milliseconds(total)} · ${rate} tokens/s · first after ${milliseconds(first)}`;
}

// Wiring

async function copy(button) {
  const source = element(button.dataset.copy);
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = label), 1500);
  } catch {
    // Browsers give the clipboard only to secure pages; a selection can be copied by hand.
    getSelection().selectAllChildren(source);
  }
}

function wire(form, work) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    working(form, work);
  });
  form.addEventListener("input", showCommand);
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}

wire(element("translate"), translate);
wire(element("complete"), complete);
element("halt").addEventListener("click", () => state.abort?.abort());
for (const name of ["temperature", "top-p"]) {
  element(name).addEventListener("input", () => (element(`${name}-value`).textContent = element(name).value));
}
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => copy(button));
}

try {
  showModel((await (await ask("/v1/models")).json()).data[0]);
  showState(true, state.model.task === "translate" ? "ready to translate" : "ready to write");
} catch (error) {
  showState(false, "not reachable");
  complain(error);
}
