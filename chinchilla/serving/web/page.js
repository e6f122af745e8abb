// What all forms share. Text from people and models only ever enters the page as text, never as markup.

export const element = (id) => document.getElementById(id);

export function make(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

export async function ask(path, body, signal) {
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

export const answer = async (path, body) => (await ask(path, body)).json();

export async function* events(response) {
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
      const told = JSON.parse(data);
      if (told.error) throw new Error(told.error.message);
      yield told;
    }
  }
}

export function complain(error) {
  const alert = element("alert");
  alert.hidden = !error;
  alert.textContent = error ? error.message : "";
}

export function short(value) {
  for (const [size, suffix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size) return `${Number((value / size).toPrecision(3))} ${suffix}`;
  }
  return String(Number(value.toPrecision(3)));
}

export const milliseconds = (time) => (time < 1000 ? `${Math.round(time)} ms` : `${(time / 1000).toFixed(1)} s`);

export function speed(tokens, first, total) {
  const rate = total > 0 ? Math.round((1000 * tokens) / total) : 0;
  return `${tokens} tokens in ${milliseconds(total)} · ${rate} tokens/s · first after ${milliseconds(first)}`;
}

// What was made of a question, said beside the time that its answer took.
export const noted = (parts, notes = []) => [...parts, ...notes].join(" · ");

export const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curl(path, body, flags = "curl") {
  return `${flags} ${location.origin}${path} \\\n  -H 'Content-Type: application/json' \\\n  -d ${quoted(JSON.stringify(body))}`;
}

export async function working(form, work) {
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

// The settings of sampling, by the ids that start with `name`.
export function sampling(name) {
  const value = (setting) => element(`${name}-${setting}`).value;
  const body = {
    max_tokens: Number(value("max-tokens")),
    temperature: Number(value("temperature")),
    top_p: Number(value("top-p")),
    top_k: Number(value("top-k")),
  };
  if (value("seed") !== "") body.seed = Number(value("seed"));
  return body;
}
