"""Bad input: a message that names what, where and the mend, the right exit code, and no half-made run folder."""

import socket

import pytest

from chinchilla.cli import main

DATA, USAGE, BUDGET, FAULT = 3, 2, 4, 5


def files(folder):
    """Broken data files by name."""
    good = "".join(f"word {number}\twort {number}\n" for number in range(40))
    contents = {
        "empty.tsv": b"",
        "one_column.tsv": b"one\ntwo\nthree\n",
        "latin1.tsv": good.encode() + "fünf\tfive\n".encode("latin-1"),
        "good.tsv": good.encode(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        (["data.train=missing.tsv"], DATA, ["missing.tsv"]),
        (["data.train=empty.tsv"], DATA, ["empty.tsv", "empty"]),
        (["data.train=one_column.tsv"], DATA, ["one_column.tsv", "row 1", "column"]),
        (["data.train=latin1.tsv"], DATA, ["latin1.tsv", "row 41", "UTF-8"]),
        (["data.trian=good.tsv"], USAGE, ["data.trian", "data.train"]),
        (["data.train=good.tsv", "train.dropout=much"], USAGE, ["train.dropout"]),
        (["data.train=good.tsv", "train.batch_tokens=true"], USAGE, ["train.batch_tokens"]),
        (["data.train=good.tsv", "budget.time=0"], USAGE, ["budget.time", "greater than 0"]),
        (["data.train=good.tsv", "budget.time=soon"], USAGE, ["budget.time", "soon"]),
        (["data.train=good.tsv", "budget.time=0.01"], BUDGET, ["budget", "raise"]),
        (["data.train=good.tsv", "limits.size=1kB"], BUDGET, ["limits.size"]),
        (["data.train=good.tsv", "tokenizer.file=good.tsv"], USAGE, ["tokenizer"]),
        (["data.train=good.tsv", 'train.trackers=["wandb"]'], USAGE, ["wandb", "pip install"]),
        (['data.train=["a", "b", "c"]'], USAGE, ["two files", "not 3"]),
    ],
)
def test_training_refuses(settings, code, words, chinchilla, tmp_path, monkeypatch):
    files(tmp_path)
    monkeypatch.chdir(tmp_path)
    budget = [] if any("budget" in setting for setting in settings) else ["budget.time=20"]
    found, _out, err = chinchilla("train", "task=translate", "train.threads=1", *settings, *budget)
    assert found == code, err
    for word in words:
        assert word in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_a_wrong_recipe(chinchilla, tmp_path):
    assert chinchilla("train", tmp_path / "none.toml")[0] == USAGE
    (tmp_path / "broken.toml").write_text("task = ", encoding="utf-8")
    code, _, err = chinchilla("train", tmp_path / "broken.toml")
    assert (code, "broken.toml" in err) == (USAGE, True)


@pytest.mark.parametrize("verb", ["evaluate", "predict", "compress", "report", "serve"])
def test_a_folder_without_a_model(verb, chinchilla, tmp_path):
    text = ["hello"] if verb == "predict" else []
    code, _, err = chinchilla(verb, tmp_path, *text)
    assert code == USAGE
    assert str(tmp_path) in err


def test_resuming_what_is_no_run(chinchilla, tmp_path):
    assert chinchilla("train", "--resume", tmp_path)[0] == USAGE
    assert chinchilla("train", "--resume", tmp_path, "task=translate")[0] == USAGE


def test_a_port_that_is_taken(trained, chinchilla):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = chinchilla("serve", trained["run"], "--port", port)
    assert code == FAULT
    assert str(port) in err


def test_unknown_verbs_and_options(capsys):
    assert main(["trian"]) == USAGE
    assert main(["train", "--bugdet", "3"]) == USAGE
    assert "bugdet" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["classify_table", "classify_image", "detect"])
def test_a_row_length_where_columns_or_patches_make_it(task, chinchilla):
    words = (f"task={task}", "data.train=none", "budget.time=60", "model.max_len=9")
    code, _, err = chinchilla("plan", *words)
    assert (code, f"model.max_len: {task} has a position a column or a patch; leave it out" in err) == (2, True), err


def test_block_attention_on_pairs(numbers, chinchilla, tmp_path):
    data = f"data.train={numbers / 'train.tsv'}"
    code, _, err = chinchilla("plan", "task=translate", data, "budget.time=20", "model.attention=block")
    assert (code, "model.attention" in err) == (USAGE, True)


def test_a_tokenizer_with_other_special_ids(numbers, chinchilla, tmp_path):
    from chinchilla.data.tokenizer import SPECIALS, Tokenizer

    text = Tokenizer.train(["one two three"], vocab_size=300).to_json()
    for number, token in enumerate(SPECIALS):
        text = text.replace(f'"{token}"', f'"was{number}"')
    tokens = Tokenizer.from_json(
        text.replace('"was0"', '"<s>"')
        .replace('"was1"', '"<pad>"')
        .replace('"was2"', '"</s>"')
        .replace('"was3"', '"<mask>"')
    )
    file = tmp_path / "tokenizer.json"
    file.write_text(tokens.to_json(), encoding="utf-8")
    data = f"data.train={numbers / 'train.tsv'}"
    code, _, err = chinchilla("plan", "task=translate", data, "budget.time=20", f"tokenizer.file={file}")
    assert (code, "0 to 3" in err) == (USAGE, True)


def test_a_fixed_max_len_shorter_than_packed_rows(numbers, chinchilla, tmp_path):
    code, _, err = chinchilla(
        "train", "task=translate", f"data.train={numbers / 'train.tsv'}", f"runs={tmp_path}", "train.threads=1",
        "model.max_len=24", "model.dim=32", "model.num_encoder_layers=1", "model.num_decoder_layers=1",
        "tokenizer.vocab_size=300", "train.steps=4", "budget.time=30", "evaluate.max_examples=4",
    )  # fmt: skip
    assert code == 0, err
