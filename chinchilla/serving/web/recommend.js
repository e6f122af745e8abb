// A history of items, and what may come next.

import { answer, ask, curl, element, make, milliseconds, noted } from "/page.js";

const PATH = "/v1/recommend";
const SUGGESTED = 5000;

export const id = "recommend";
let items = [];

export function start() {
  suggest();
  element("add").addEventListener("click", add);
  element("item").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    add();
  });
}

async function suggest() {
  const { data } = await (await ask("/v1/items")).json();
  element("known-items").append(...data.slice(0, SUGGESTED).map((name) => new Option(name)));
}

function add() {
  const name = element("item").value.trim();
  if (name === "") return;
  items.push(name);
  element("item").value = "";
  element("item").focus();
  show();
}

function show() {
  element("history").replaceChildren(
    ...items.map((name, place) => {
      const line = make("li");
      const remove = make("button", "Remove", "quiet");
      remove.type = "button";
      remove.setAttribute("aria-label", `Remove ${name}`);
      remove.addEventListener("click", () => {
        items.splice(place, 1);
        show();
      });
      line.append(make("span", name, "name"), remove);
      return line;
    }),
  );
  element("recommend").dispatchEvent(new Event("input"));
}

function body() {
  return { items, k: Number(element("count").value), exclude_seen: element("exclude-seen").checked };
}

export const command = () => curl(PATH, body());

export async function run() {
  const begin = performance.now();
  add();
  element("recommend-note").textContent = "";
  const told = await answer(PATH, body());
  element("recommended").replaceChildren(
    ...told.recommendations.map(({ item, score }) => {
      const line = make("li");
      line.append(make("span", item, "name"), make("span", score.toPrecision(3), "chance"));
      return line;
    }),
  );
  element("recommend-note").textContent = noted([milliseconds(performance.now() - begin)], told.notes);
}
