"""`predict` on model folders of every kind of question: in words here, as JSON there, errors by their number."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from chinchilla.cli import main
from chinchilla.config.errors import DataError
from chinchilla.config.shape import ImageStem, Shape, TableStem
from chinchilla.data.chat_template import CHAT
from chinchilla.data.classes import Classes
from chinchilla.data.columns import CategoryColumn, Columns, NumberColumn
from chinchilla.data.items import Items
from chinchilla.data.letterbox import Size
from chinchilla.data.picture_classes import Colours, PictureClasses
from chinchilla.data.table_classes import TableClasses
from chinchilla.data.text_classes import TextClasses
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.models.generate import Sampling
from chinchilla.models.hub import write_model
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.dialogue import ChatCodec
from chinchilla.verbs.predict import in_words, predict

CLASSES = Classes(names=("no", "yes"), positive="yes")
TOKENIZER = Tokenizer.train(["one two three four", "five six"] * 3, vocab_size=300, marks=CHAT.marks)


def folder(path: Path, task: str, codec: Any, **changes: Any) -> Path:
    """A small random model, as training leaves it."""
    torch.manual_seed(0)
    shape = {"dim": 16, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8, "ffn_dim": 32, "max_len": 32, "vocab_size": 4}
    model = Transformer(Shape(**(shape | {"tied_embeddings": False} | changes)))
    write_model(path / task, model, codec.tokenizer_json, extra={"task": task, "codec": codec.settings})
    return path / task


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    age = NumberColumn(column="age", knots=(18.0, 30.0, 80.0), count=50)
    columns = Columns(numbers=(age,), categories=(CategoryColumn(column="job", categories=("cook",)),))
    stem = TableStem(num_numeric=1, cardinalities=columns.cardinalities)
    codec = TableClasses(columns, CLASSES)
    return folder(tmp_path, "classify_table", codec, num_encoder_layers=1, num_classes=2, stem=stem)


def test_texts_get_a_class_and_probabilities(tmp_path: Path):
    codec = TextClasses(TOKENIZER, CLASSES, 16)
    path = folder(
        tmp_path, "classify_text", codec, num_encoder_layers=1, num_classes=2, vocab_size=TOKENIZER.vocab_size
    )
    answers = list(predict(path, ["one two", "six"] * 40))
    assert len(answers) == 80 and answers[0]["probabilities"] == pytest.approx(answers[2]["probabilities"])
    for answer in answers[:2]:
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert in_words(answer) == max(answer["probabilities"], key=answer["probabilities"].get)
    with pytest.raises(DataError, match="question 1: an empty text"):
        list(predict(path, [" "]))
    with pytest.raises(DataError, match="question 2: not UTF-8"):
        list(predict(path, ["one", "caf\udce9"]))


def test_a_blank_line_has_an_empty_answer_so_that_the_others_keep_their_lines(
    tmp_path: Path, rows: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    given = tmp_path / "questions.txt"
    given.write_bytes(b'\xef\xbb\xbf{"age": 30}\r\n\r\n' + b'{"job": "cook\xe2\x80\xa8"}\n' * 65)
    with caplog.at_level(logging.INFO, "chinchilla"):
        assert main(["predict", str(rows), "--file", str(given), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert len(answers) == 67 and [place for place, each in enumerate(answers) if each is None] == [1]
    assert "question 2: nothing but blanks" in caplog.text
    assert main(["predict", str(rows), "--file", str(given)]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 68 and lines[1] == "" and {*lines[:1], *lines[2:67]} <= set(CLASSES.names)


def test_images_come_by_their_path(tmp_path: Path):
    codec = PictureClasses(CLASSES, Size(8, 8, 1), Colours(means=(0.5,), stds=(0.2,)))
    stem = ImageStem(height=8, width=8, channels=1, patch=4)
    path = folder(tmp_path, "classify_image", codec, num_encoder_layers=1, num_classes=2, stem=stem)
    Image.effect_noise((20, 30), 60).save(tmp_path / "photo.png")
    [answer] = predict(path, [str(tmp_path / "photo.png")])
    assert answer["label"] in CLASSES.names
    (tmp_path / "note.txt").write_text("no image")
    for name, words in (("none.png", "no such file"), ("note.txt", "not an image")):
        with pytest.raises(DataError, match=f"question 1: .*{name}: {words}"):
            list(predict(path, [str(tmp_path / name)]))


def test_rows_come_as_json_and_what_is_missing_is_said(rows: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "chinchilla"):
        list(predict(rows, ['{"age": 30, "job": "cook"}', '{"job": "cook"}']))
    assert [record.getMessage() for record in caplog.records] == ["question 2: no value for age: taken as missing"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("age=30", "not valid JSON.*write an object"),
        ("[" * 100_000, "not valid JSON.*write an object"),
        ('{"job": "\\ud800"}', "not valid JSON"),
        ("[30]", "JSON of another kind; write an object"),
        ('{"agee": 30}', "no column 'agee'"),
        ('{"age": "old"}', "column age: 'old'"),
    ],
)
def test_rows_that_cannot_be_read_are_named(rows: Path, row: str, words: str):
    with pytest.raises(DataError, match=f"^question 1: {words}"):
        list(predict(rows, [row]))


def test_histories_come_as_json(tmp_path: Path):
    items = Items(names=("cup", "mug", "pot"))
    path = folder(tmp_path, "recommend", items, num_decoder_layers=1, vocab_size=items.vocab_size)
    [answer] = predict(path, ['["cup"]'])
    assert {each["item"] for each in answer["recommendations"]} == {"mug", "pot"}
    assert in_words(answer) in ("mug, pot", "pot, mug")


def test_a_message_is_answered(tmp_path: Path):
    path = folder(tmp_path, "dialogue", ChatCodec(TOKENIZER), num_decoder_layers=1, vocab_size=TOKENIZER.vocab_size)
    once, again = predict(path, ["one two"] * 2, sampling=Sampling(6, temperature=0))
    assert once == again and in_words(once) == once["text"]
    with pytest.raises(DataError, match="question 1: the last one is too long"):
        list(predict(path, ["one " * 40]))


def test_the_command_prints_words_or_json(rows: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["predict", str(rows), '{"age": 30, "job": "cook"}']) == 0
    words = capsys.readouterr().out.strip()
    assert main(["predict", str(rows), '{"age": 30, "job": "cook"}', "--json"]) == 0
    [answer] = json.loads(capsys.readouterr().out)["answers"]
    assert answer["label"] == words and set(answer["probabilities"]) == {"no", "yes"}
    assert main(["predict", str(rows), "{"]) == 3
