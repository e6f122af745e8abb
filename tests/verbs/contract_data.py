"""Tiny data for every task, made by rules that a tiny model learns within a few dozen steps.

`write(task, folder)` writes the data, and gives the settings that name them; `asked(task, example)` is a test example's
question as a client would send it.
"""

import csv
import io
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from chinchilla.config.plan import TaskName

ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
EINS = ["eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn"]
GOOD, BAD = ["sunny", "bright", "kind", "sweet"], ["gloomy", "dark", "rude", "sour"]
SIDE = 8


def write(task: TaskName, folder: Path) -> tuple[str, ...]:
    """Write a task's data into `folder`; settings like `data.train=…`."""
    return WRITERS[task](folder, random.Random(7))


def _numbers(draw: random.Random, least: int, most: int) -> list[int]:
    return [draw.randrange(len(ONES)) for _ in range(draw.randint(least, most))]


def _lines(path: Path, rows: Iterable[str]) -> tuple[str, ...]:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return (f"data.train={path}",)


def _table(path: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> tuple[str, ...]:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return (f"data.train={path}",)


def _translate(folder: Path, draw: random.Random) -> tuple[str, ...]:
    """Numbers in English to German ones."""
    drawn = [_numbers(draw, 2, 6) for _ in range(240)]
    pairs = (" ".join(ONES[n] for n in each) + "\t" + " ".join(EINS[n] for n in each) for each in drawn)
    return _lines(folder / "train.tsv", pairs)


def _summarise(folder: Path, draw: random.Random) -> tuple[str, ...]:
    """A list of numbers to its first two."""
    drawn = [[ONES[n] for n in _numbers(draw, 6, 16)] for _ in range(240)]
    return _lines(folder / "train.tsv", (f"{' and '.join(each)}\tfirst {each[0]} {each[1]}" for each in drawn))


def _generate(folder: Path, draw: random.Random) -> tuple[str, ...]:
    """Counting, from somewhere on."""
    starts = (draw.randrange(10) for _ in range(160))
    documents = [" ".join(ONES[(start + step) % 10] for step in range(draw.randint(8, 24))) for start in starts]
    return _lines(folder / "train.txt", (f"{text} {number}\n" for number, text in enumerate(documents)))


def _dialogue(folder: Path, draw: random.Random) -> tuple[str, ...]:
    """What comes after a number, asked once or twice; some are told first how to behave."""

    def chat(place: int) -> str:
        said = [{"role": "system", "content": "You count."}] if place % 3 == 0 else []
        for number in _numbers(draw, 1, 2):
            said.append({"role": "user", "content": f"What comes after {ONES[number]}, for the {place}th time?"})
            said.append({"role": "assistant", "content": f"It is {ONES[(number + 1) % 10]}."})
        return json.dumps({"messages": said})

    return _lines(folder / "train.jsonl", map(chat, range(160)))


def _classify_text(folder: Path, draw: random.Random) -> tuple[str, ...]:
    """Good and bad words among neutral ones."""

    def row(place: int) -> str:
        words = [ONES[n] for n in _numbers(draw, 2, 8)]
        words.insert(draw.randrange(len(words)), draw.choice((GOOD, BAD)[place % 2]))
        return json.dumps({"text": " ".join(words), "label": ("good", "bad")[place % 2]})

    return _lines(folder / "train.jsonl", map(row, range(240)))


def _classify_image(folder: Path, draw: random.Random) -> tuple[str, ...]:
    """A stripe across, a stripe down, or none, in some colour over noise."""
    random = np.random.default_rng(draw.randrange(100))
    for place in range(150):
        label = ("across", "down", "none")[place % 3]
        pixels = random.integers(0, 60, (SIDE, SIDE, 3), np.uint8)
        at = slice(*(int(random.integers(0, SIDE - 2)) + np.array([0, 2])).tolist())
        colour = random.integers(150, 255, 3)
        if label != "none":
            pixels[(at, slice(None)) if label == "across" else (slice(None), at)] = colour
        path = folder / "train" / label / f"{place:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels))
    return (f"data.train={folder / 'train'}",)


def _classify_table(folder: Path, draw: random.Random) -> tuple[str, ...]:
    """A risk that grows with age, and with one of three jobs; some cells are empty."""

    def row(place: int) -> tuple[object, ...]:
        age, income = draw.randint(18, 80), round(draw.uniform(10, 90), 2)
        job = draw.choice(("cook", "smith", "diver"))
        risk = "high" if age + 30 * (job == "diver") > 60 else "low"
        return "" if place % 17 == 0 else age, income, "" if place % 13 == 0 else job, risk

    return _table(folder / "train.csv", ("age", "income", "job", "label"), map(row, range(240)))


def _recommend(folder: Path, draw: random.Random) -> tuple[str, ...]:
    """Whoever had an item takes the next one of a ring of twelve."""
    rows = []
    for user in range(80):
        start = draw.randrange(12)
        rows += [(f"u{user}", f"film {(start + step) % 12}", step) for step in range(draw.randint(4, 9))]
    draw.shuffle(rows)
    return _table(folder / "train.csv", ("user", "item", "time"), rows)


def _detect(folder: Path, draw: random.Random) -> tuple[str, ...]:
    """One or two squares, bright or middling, on noise."""
    random = np.random.default_rng(draw.randrange(100))
    images, marks = [], []
    (folder / "images").mkdir()
    for place in range(60):
        pixels = random.integers(0, 40, (3 * SIDE, 3 * SIDE, 3), np.uint8)
        for corner in random.permutation(4)[: random.integers(1, 3)]:
            kind, (y, x) = int(random.integers(2)), (int(corner) // 2 * 12 + 2, int(corner) % 2 * 12 + 2)
            pixels[y : y + SIDE, x : x + SIDE] = (250, 120)[kind]
            marks.append({"image_id": place, "category_id": kind, "bbox": [x, y, SIDE, SIDE]})
        images.append({"id": place, "file_name": f"{place}.png"})
        (folder / "images" / f"{place}.png").write_bytes(png(pixels))
    kinds = [{"id": number, "name": name} for number, name in enumerate(("bright", "middling"))]
    told = {"images": images, "annotations": marks, "categories": kinds}
    (folder / "train.json").write_text(json.dumps(told))
    return (f'data.train=["{folder / "train.json"}", "{folder / "images"}"]',)


WRITERS: dict[TaskName, Callable[[Path, random.Random], tuple[str, ...]]] = {
    "translate": _translate,
    "summarise": _summarise,
    "generate": _generate,
    "dialogue": _dialogue,
    "classify_text": _classify_text,
    "classify_image": _classify_image,
    "classify_table": _classify_table,
    "detect": _detect,
    "recommend": _recommend,
}


def png(pixels: np.ndarray) -> bytes:
    """A file of these pixels (height, width, channels), which loses nothing."""
    packed = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(packed, "PNG")
    return packed.getvalue()


def asked(task: TaskName, question: Any) -> Any:
    """What a task asks of an example, as the codec's `read_question` takes it from a client."""
    match task:
        case "classify_image":
            return png(question)
        case "detect":
            return png(question.image)
        case "dialogue":
            said = [{"role": message.role, "content": message.content} for message in question]
            return {"messages": said, "room": None}
    return question
