// A text, an image or a row of a table, and how likely each class is; or the things in an image, and where.

import { answer, complain, curl, element, make, milliseconds, noted, quoted } from "/page.js";

const BARS = 12;
const MARK = "#e0245e";

export const id = "classify";
let kind;
let path = "/v1/classify";
let finds = false;
let columns = [];
let form = {};
let file = null;
let mostBytes = 0;

export function start(model) {
  finds = model.task === "detect";
  form = model.form;
  if (finds) startFinding();
  kind = finds ? "image" : model.task.replace("classify_", "");
  mostBytes = model.limits.image_body_bytes;
  element(`classify-${kind}`).hidden = false;
  if (kind === "image") startImage();
  if (kind === "table") startTable(model.form.columns);
}

function startFinding() {
  path = "/v1/detect";
  element("verdict-label").textContent = "Found";
  element("classify").querySelector(".primary").textContent = "Find things";
}

export function command() {
  if (kind === "image") return imageCommand();
  return curl(path, kind === "text" ? { text: element("subject").value } : { row: row() });
}

export async function run() {
  const begin = performance.now();
  element("classify-note").textContent = "";
  const told = await answer(path, await body());
  const [found] = finds ? told.detections : told.classifications;
  if (finds) await showBoxes(found.boxes);
  else showBars(found);
  const took = [milliseconds(performance.now() - begin)];
  if (told.usage) took.push(`${told.usage.source_tokens} tokens`);
  if (form.threshold) took.push(`${form.positive} from ${percent(form.threshold)} on`);
  element("classify-note").textContent = noted(took, found.notes);
}

async function body() {
  if (kind === "text") return { text: element("subject").value };
  if (kind === "table") return { row: row() };
  if (!file) throw new Error("choose an image first");
  const image = await dataUrl(file);
  if (image.length + 20 > mostBytes) throw new Error(`${file.name} is too large: at most ${Math.floor((mostBytes * 3) / 4e6)} MB`);
  return { image };
}

function showBars(found) {
  const ranked = Object.entries(found.probabilities).sort((one, other) => other[1] - one[1]);
  element("verdict").textContent = found.label;
  element("bars").replaceChildren(...ranked.slice(0, BARS).map(([name, chance]) => bar(name, chance, name === found.label)));
  const rest = ranked.slice(BARS).reduce((sum, [, chance]) => sum + chance, 0);
  if (ranked.length > BARS) element("bars").append(bar(`${ranked.length - BARS} others`, rest, false));
}

async function showBoxes(boxes) {
  const things = ["Nothing", "1 thing"][boxes.length] || `${boxes.length} things`;
  element("verdict").textContent = `${things} found`;
  element("bars").replaceChildren(...boxes.map(({ label, score }, index) => bar(`${index + 1} ${label}`, score, true)));
  await draw(file);
  boxes.forEach(({ box }, index) => mark(element("preview"), box, String(index + 1)));
}

function mark(canvas, [x0, y0, x1, y1], number) {
  const pen = canvas.getContext("2d");
  const [left, top] = [x0 * canvas.width, y0 * canvas.height];
  pen.lineWidth = 2;
  pen.strokeStyle = pen.fillStyle = MARK;
  pen.font = "13px sans-serif";
  pen.strokeRect(left, top, (x1 - x0) * canvas.width, (y1 - y0) * canvas.height);
  pen.fillRect(left, top, 10 + 8 * number.length, 16);
  pen.fillStyle = "white";
  pen.fillText(number, left + 5, top + 12);
}

function bar(name, chance, chosen) {
  const line = make("li", "", chosen ? "chosen" : "");
  const track = make("span", "", "track");
  const fill = make("span", "", "fill");
  fill.style.width = `${100 * chance}%`;
  track.append(fill);
  const text = make("span", name, "name");
  text.dir = "auto";
  line.append(text, make("span", percent(chance), "chance"), track);
  return line;
}

const percent = (chance) => (chance > 0 && chance < 0.001 ? "< 0.1 %" : `${(100 * chance).toFixed(1)} %`);

// Images

function startImage() {
  const drop = element("drop");
  element("file").addEventListener("change", (event) => choose(event.target.files[0]));
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    choose(event.dataTransfer.files[0]);
  });
}

async function choose(chosen) {
  if (!chosen) return;
  file = chosen;
  complain(null);
  element("preview").hidden = true;
  element("file-name").textContent = chosen.name;
  await draw(chosen);
  element("classify").dispatchEvent(new Event("input"));
}

async function draw(chosen) {
  const canvas = element("preview");
  try {
    const image = await createImageBitmap(chosen);
    const scale = Math.min(finds ? 4 : 1, 480 / Math.max(image.width, image.height));
    canvas.width = Math.max(1, Math.round(image.width * scale));
    canvas.height = Math.max(1, Math.round(image.height * scale));
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    image.close();
    canvas.setAttribute("aria-label", chosen.name);
    canvas.hidden = false;
  } catch {
    element("file-name").textContent = `${chosen.name} (this browser cannot show it; the server may read it)`;
  }
}

function dataUrl(chosen) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${chosen.name} cannot be read`));
    reader.readAsDataURL(chosen);
  });
}

function imageCommand() {
  const name = quoted(file ? file.name : "image.png");
  return (
    `(printf '{"image":"'; base64 < ${name} | tr -d '\\n'; printf '"}') | \\\n` +
    `curl ${location.origin}${path} -H 'Content-Type: application/json' -d @-`
  );
}

// Tables

function startTable(given) {
  columns = given.map((column, index) => ({ ...column, control: control(column, `column-${index}`) }));
  element("columns").append(
    ...columns.map(({ name, control: input }) => {
      const label = make("label", "", "column");
      label.append(make("span", name, "name"), input);
      return label;
    }),
  );
}

const HINTS = { number: "a number", time: "2024-05-31 12:00" };

function control(column, name) {
  const input = column.kind === "category" ? make("select") : make("input");
  input.id = name;
  if (column.kind === "category") {
    input.append(new Option("", ""), ...column.categories.map((category) => new Option(category, category)));
  } else {
    input.type = "text";
    input.placeholder = HINTS[column.kind] || "";
    if (column.kind === "number") input.inputMode = "decimal";
  }
  return input;
}

function row() {
  const filled = columns.filter(({ control: input }) => input.value.trim() !== "");
  return Object.fromEntries(filled.map(({ name, control: input }) => [name, input.value.trim()]));
}
