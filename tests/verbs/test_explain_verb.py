"""`chinchilla explain` from the command line, on model folders of each kind of classifier."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from chinchilla.config.shape import ImageStem, Shape, TableStem
from chinchilla.data.classes import Classes
from chinchilla.data.columns import CategoryColumn, Columns, NumberColumn
from chinchilla.data.letterbox import Size
from chinchilla.data.picture_classes import Colours, PictureClasses
from chinchilla.data.table_classes import TableClasses
from chinchilla.data.text_classes import TextClasses
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.models.hub import write_model
from chinchilla.models.transformer import Transformer

CLASSES = Classes(names=("<b>good</b>", "bad"), positive="bad")
TEXT = "a <script>good</script> day & a bad night"


def write(folder, task, codec, vocab_size=8, **changes):
    torch.manual_seed(0)
    shape = Shape(
        vocab_size=vocab_size, dim=16, num_heads=2, num_kv_heads=2, head_dim=8, ffn_dim=32,
        num_encoder_layers=1, num_classes=2, max_len=64, **changes,
    )  # fmt: skip
    settings = {"task": task, "codec": codec.settings}
    write_model(folder, Transformer(shape), codec.tokenizer_json, extra=settings)
    return folder


@pytest.fixture
def text_model(tmp_path):
    codec = TextClasses(Tokenizer.train([TEXT] * 3, "bpe", 300), CLASSES, 64)
    return write(tmp_path / "text", "classify_text", codec, codec.tokenizer.vocab_size)


@pytest.fixture
def image_model(tmp_path):
    codec = PictureClasses(CLASSES, Size(8, 12, 1), Colours(means=(0.5,), stds=(0.2,)))
    return write(
        tmp_path / "image", "classify_image", codec, stem=ImageStem(height=8, width=12, channels=1, pooled=True)
    )


@pytest.fixture
def row_model(tmp_path):
    columns = Columns(
        numbers=(NumberColumn(column="age", knots=(0.0, 50.0, 100.0), count=9),),
        categories=(CategoryColumn(column="town", categories=("here", "there")),),
    )
    stem = TableStem(num_numeric=1, cardinalities=(4,))
    return write(tmp_path / "row", "classify_table", TableClasses(columns, CLASSES), stem=stem)


def test_a_text(text_model, chinchilla):
    code, out, _ = chinchilla("explain", text_model, TEXT, "--class", "bad", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["class"] == "bad" and sum(told["probabilities"].values()) == pytest.approx(1)
    assert "".join(part["name"] for part in told["parts"]) == TEXT
    found = sum(part["attribution"] for part in told["parts"]) + told["gap"]
    assert found == pytest.approx(told["log_odds"] - told["baseline"]["log_odds"])
    assert set(told["deletion"]["areas"]) == {"attribution", "attention", "random"}
    page = (text_model / "explain.html").read_text()
    assert told["page"] == str(text_model / "explain.html")
    assert "<script" not in page and "<b>good" not in page and "&lt;b&gt;good" in page
    assert page.count('style="background: color-mix') == 2 * len(told["parts"])
    assert "http://" not in page.replace("http://www.w3.org/", "") and "https://" not in page


def test_an_image(image_model, chinchilla, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    code, out, _ = chinchilla("explain", image_model, tmp_path / "image.png", "--out", tmp_path / "why.html", "--json")
    assert code == 0
    assert [part["name"] for part in json.loads(out)["parts"]] == ["0, 0", "0, 1", "0, 2", "1, 0", "1, 1", "1, 2"]
    page = (tmp_path / "why.html").read_text()
    assert page.count('src="data:image/png;base64,') == 3
    assert "img-src data:;" in page


def test_a_row(row_model, chinchilla):
    code, out, _ = chinchilla("explain", row_model, '{"age": 40, "town": "here"}')
    assert code == 0
    assert out.splitlines()[-1] == str(row_model / "explain.html")
    page = (row_model / "explain.html").read_text()
    assert "age = 40" in page and "town = here" in page
    assert "img-src" not in page


def test_what_is_refused_is_refused_before_anything_is_written(text_model, row_model, chinchilla, tmp_path):
    for words, message in (
        ((text_model, "a", "--class", "ugly"), "no class 'ugly'"),
        ((text_model, "a", "--out", tmp_path / "no" / "a.html"), "there is no folder"),
        ((text_model, "a", "--out", tmp_path / "a.pdf"), "ends in .html"),
        ((tmp_path / "nothing", "a"), "nothing"),
    ):
        code, _, errors = chinchilla("explain", *words)
        assert code == 2 and message in errors, words
    code, _, errors = chinchilla("explain", row_model, '{"aeg": 1}')
    assert code == 3 and "did you mean 'age'" in errors
    assert not list(tmp_path.rglob("*.html"))
