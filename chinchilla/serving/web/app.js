// The page of `chinchilla serve`: shows what is served, and the form that fits its task.

import * as chat from "/chat.js";
import * as classify from "/classify.js";
import * as complete from "/complete.js";
import { ask, complain, element, make, short, working } from "/page.js";
import * as recommend from "/recommend.js";
import * as rewrite from "/rewrite.js";

const FORMS = {
  translate: rewrite,
  summarise: rewrite,
  generate: complete,
  dialogue: chat,
  classify_text: classify,
  classify_image: classify,
  classify_table: classify,
  detect: classify,
  recommend,
};
const READY = {
  translate: "ready to translate",
  summarise: "ready to summarise",
  generate: "ready to write",
  dialogue: "ready to talk",
  detect: "ready to look",
  recommend: "ready to recommend",
};
const SCORES = {
  bleu: "BLEU",
  chrf: "chrF",
  rouge1: "ROUGE-1",
  rougeL: "ROUGE-L",
  bits_per_byte: "bits a byte",
  perplexity: "perplexity",
  accuracy: "accuracy",
  macro_f1: "macro F1",
  roc_auc: "ROC-AUC",
  ap: "AP",
  ap50: "AP50",
  hit_rate_10: "HR@10",
  ndcg_10: "NDCG@10",
};
const PIECES = ["classes", "columns"];

// What the model is

function facts(model) {
  const scores = Object.entries(model.metrics).filter(([name]) => name in SCORES);
  const { size, num_items: items } = model.form;
  return [
    ["parameters", short(model.num_params)],
    ["size", `${short(model.size_bytes)}B`],
    ["weights", model.precision],
    ...PIECES.filter((name) => name in model.form).map((name) => [name, String(model.form[name].length)]),
    items ? ["items", String(items)] : null,
    size ? ["image", `${size[1]} × ${size[0]}`] : null,
    size || model.form.columns ? null : ["longest", `${model.max_len} ${items ? "items" : "tokens"}`],
    ...scores.map(([name, value]) => [SCORES[name], short(value)]),
  ].filter(Boolean);
}

function showModel(model) {
  element("name").textContent = model.id;
  document.title = `${model.id} · Chinchilla`;
  element("facts").replaceChildren(
    ...facts(model).map(([name, value]) => {
      const fact = make("div");
      fact.append(make("dt", name), make("dd", value));
      return fact;
    }),
  );
}

function showState(good, text) {
  element("dot").className = good ? "dot good" : "dot bad";
  element("state").textContent = text;
}

// Its form

function open(form, model) {
  const card = element(form.id);
  const showCommand = () => (element("curl").textContent = form.command());
  form.start(model);
  card.hidden = element("command").hidden = false;
  showCommand();
  for (const name of ["input", "change"]) card.addEventListener(name, showCommand);
  card.addEventListener("submit", (event) => {
    event.preventDefault();
    working(card, () => form.run()).then(showCommand);
  });
  card.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) card.requestSubmit();
  });
  for (const range of card.querySelectorAll("input[type=range]")) {
    range.addEventListener("input", () => (element(`${range.id}-value`).textContent = range.value));
  }
  [...card.querySelectorAll("textarea, input, select")].find((control) => control.offsetParent)?.focus();
}

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

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => copy(button));
}

try {
  const [model] = (await (await ask("/v1/models")).json()).data;
  showModel(model);
  open(FORMS[model.task], model);
  showState(true, READY[model.task] || "ready to classify");
} catch (error) {
  showState(false, "not reachable");
  complain(error);
}
