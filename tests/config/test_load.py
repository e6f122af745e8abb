import os
import string
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla.config.errors import UsageError
from chinchilla.config.load import Loaded, keys, load_run, to_toml
from chinchilla.config.run import LONGEST_S, MOST_FLOPS, Budget, Data, Evaluate, Here, Limits, Run, Tokenizer, Train
from chinchilla.config.run import Model as ModelKeys

ENOUGH = ["task=translate", "data.train=a.tsv", "budget.time=10m"]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    """The working folder is `work`, recipes lie elsewhere."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def refused(recipe: Path | None, *overrides: str) -> str:
    with pytest.raises(UsageError) as error:
        load_run(recipe, overrides)
    return str(error.value)


# --- where values come from -------------------------------------------------------------------------------------------


def test_task_data_and_budget_are_a_complete_run(tmp_path):
    run = load_run(None, ENOUGH).run
    assert (run.task, run.data.train, run.budget.time) == ("translate", tmp_path / "work" / "a.tsv", 600.0)
    assert run.runs == tmp_path / "work" / "runs"


def test_a_recipe_builds_on_others_and_overrides_come_last(tmp_path):
    write(
        tmp_path / "base" / "base.toml",
        'task = "translate"\nseed = 1\n[data]\ntrain = "train.tsv"\nvalid = "valid.tsv"\n'
        '[budget]\ntime = "1h"\n[train]\nlearning_rate = 0.1\noptimizer = "adamw"',
    )
    middle = write(tmp_path / "middle.toml", 'extends = "base/base.toml"\nseed = 2\n[train]\nlearning_rate = 0.2')
    top = write(tmp_path / "top" / "top.toml", 'extends = "../middle.toml"\nseed = 3\n[data]\nvalid = "mine.tsv"')
    loaded = load_run(top, ["seed=4", "data.test=test.tsv", "train.compile=true"])
    run, origins = loaded.run, loaded.origins
    assert (run.seed, run.train.learning_rate, run.train.optimizer, run.train.compile) == (4, 0.2, "adamw", True)
    assert run.data.train == tmp_path / "base" / "train.tsv"
    assert run.data.valid == tmp_path / "top" / "mine.tsv"
    assert run.data.test == tmp_path / "work" / "test.tsv"
    assert origins["data.train"] == str(tmp_path / "base" / "base.toml")
    assert origins["train.learning_rate"] == str(middle)
    assert origins["data.valid"] == str(top)
    assert origins["seed"] == origins["train.compile"] == "command line"
    assert origins["runs"] == origins["evaluate.beam_size"] == "default"
    assert origins.keys() == keys().keys()


def test_paths_may_be_absolute_or_start_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    recipe = write(
        tmp_path / "r.toml", 'task="generate"\n[data]\ntrain=["~/a.txt", "/b.txt", "c.txt"]\n[budget]\ntime=1'
    )
    assert load_run(recipe).run.data.train == (tmp_path / "home" / "a.txt", Path("/b.txt"), tmp_path / "c.txt")


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('task="generate"\n[data]\ntrain="a"\n[budget]\ntime=1', encoding="utf-8-sig")
    assert load_run(recipe).run.task == "generate"


def test_a_budget_gives_way_to_a_later_one_of_the_other_kind(tmp_path):
    recipe = write(tmp_path / "r.toml", 'task="translate"\n[data]\ntrain="a"\n[budget]\ntime="10m"')
    loaded = load_run(recipe, ["budget.flops=1e15"])
    assert (loaded.run.budget.time, loaded.run.budget.flops) == (None, 1e15)
    assert (loaded.origins["budget.time"], loaded.origins["budget.flops"]) == ("default", "command line")
    assert "budget: give exactly one of time" in refused(recipe, "budget.flops=1e15", "budget.time=5m")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.batch_tokens=2e3", 2000),
        ("train.batch_tokens=4k", 4000),
        ("limits.size=16.1kB", 16100),
        ("limits.memory=2GiB", 2**31),
        ("train.dropout=0.1", 0.1),
        ("train.compile=false", False),
        ("model.dim=64", 64),
        ('train.trackers=["wandb", "mlflow"]', ("wandb", "mlflow")),
        ("data.source=2024", "2024"),
        ("data.source=true", "true"),
        ('data.source="quoted"', "quoted"),
        ("data.source=a = b # c", "a = b # c"),
        ("name=1e3", "1e3"),
        ("data.source=", ""),
    ],
)
def test_override_values(override, value):
    run: Any = load_run(None, [*ENOUGH, override]).run
    for part in override.partition("=")[0].split("."):
        run = getattr(run, part)
    assert run == value


def test_a_file_may_be_named_like_a_number(tmp_path):
    assert load_run(None, [*ENOUGH, "data.train=2026-01-01"]).run.data.train == tmp_path / "work" / "2026-01-01"


def test_the_last_of_two_overrides_counts():
    assert load_run(None, [*ENOUGH, "seed=1", "seed=2"]).run.seed == 2


# --- what is refused, and how -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train.lerning_rate", "train.learning_rate"),
        ("learning_rate", "train.learning_rate"),
        ("train.dim", "model.dim"),
        ("dta.train", "data.train"),
        ("train.seed", "seed"),
        ("taks", "task"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(tmp_path, key, nearest):
    assert refused(None, *ENOUGH, f"{key}=1") == f"command line: unknown key {key}; did you mean {nearest}?"
    table, _, name = key.rpartition(".")
    recipe = write(tmp_path / "r.toml", f"[{table}]\n{name} = 1" if table else f"{name} = 1")
    assert refused(recipe, *ENOUGH) == f"{recipe}: unknown key {key}; did you mean {nearest}?"


def test_an_unknown_key_near_to_nothing_is_answered_with_all():
    message = refused(None, "zzzzqqqq=1")
    assert all(key in message for key in keys())


def test_an_unknown_table_is_refused_even_when_empty(tmp_path):
    recipe = write(tmp_path / "r.toml", "[trian]\n[train]\n")
    assert refused(recipe, *ENOUGH).startswith(f"{recipe}: unknown key trian")
    assert load_run(write(tmp_path / "s.toml", "[train]\n"), ENOUGH)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=many", "train.steps: input should be a valid integer"),
        ("train.steps=0", "train.steps: input should be greater than 0 (given: 0)"),
        ("train.dropout=1", "train.dropout: input should be less than 1 (given: 1)"),
        ("train.optimizer=sgd", "train.optimizer: input should be 'adamw' or 'muon' (given: 'sgd')"),
        ("train.trackers=wandb", "train.trackers: input should be a valid tuple (given: 'wandb')"),
        ("budget.time=10q", "budget.time: '10q' is not a time: write a number, with one of s, m, min, h, d"),
        ("budget.time=-1m", "budget.time: input should be greater than 0 (given: '-1m')"),
        ("budget.time=nan", "budget.time: input should be a finite number (given: nan)"),
        ("limits.size=1e400", "limits.size: input should be a finite number (given: inf)"),
        ("limits.size=0.5", "limits.size: input should be a valid integer"),
        ("budget.time=true", "budget.time: true is not a value for it"),
        ("budget.time=10000y", "budget.time: '10000y' is not a time"),
        ("budget.time=3652500d", "budget.time: that is more than a century; is the unit right? (given: '3652500d')"),
        ("budget.flops=1e40", "budget.flops: that is 1,000 times more than any model was trained with"),
        ("budget.flops=-1", "budget.flops: input should be greater than 0 (given: -1)"),
        ("budget.flops=inf", "budget.flops: input should be a finite number (given: inf)"),
        ("budget.money=0", "budget.money: input should be greater than 0 (given: 0)"),
        ("budget.money=nan", "budget.money: input should be a finite number (given: nan)"),
        ("budget.money=12 EUR", "budget.money: '12 EUR' is not a number: write a number alone (given: '12 EUR')"),
        ("budget.energy=-2kWh", "budget.energy: input should be greater than 0 (given: '-2kWh')"),
        ("budget.energy=2kW", "budget.energy: '2kW' is not an energy: write a number, with one of J, kJ, MJ, GJ, Wh"),
        ("limits.latency=0", "limits.latency: input should be greater than 0 (given: 0)"),
        ("limits.latency=50q", "limits.latency: '50q' is not a time: write a number, with one of s, m, min, h, d, ms"),
        ("machine.watts=0", "machine.watts: input should be greater than 0 (given: 0)"),
        ("machine.price_per_hour=-1", "machine.price_per_hour: input should be greater than or equal to 0"),
        ("machine.pric=1", "unknown key machine.pric; did you mean machine.price_per_hour?"),
        ("model.dim=true", "model.dim: true is not a value for it"),
        ("name=a/b", "name: string should match pattern"),
        ("data=3", "data is a table; set one of data.train"),
        ("budget.time.x=3", "unknown key budget.time.x"),
        ("data.train=", "data.train: '' cannot be a file's name"),
        ("data.train=~nobody-has-this-name/x", "data.train: '~nobody-has-this-name/x' cannot be a file's name"),
        ('data.train="a\\u0000b"', "data.train: 'a\\x00b' cannot be a file's name"),
        ("data.train=bad\udcff", "data.train: 'bad\\udcff' cannot be a file's name"),
        ("seed=" + "9" * 5000, "seed: "),
        ("model.dim=" + "[" * 5000, "model.dim: input should be a valid integer"),
        ("budget.time=1\nseed=4", "budget.time: '1\\nseed=4' is not a time"),
    ],
)
def test_a_wrong_value_says_where_what_and_what_is_allowed(override, message):
    assert refused(None, *ENOUGH, override).startswith(f"command line: {message}")


@pytest.mark.parametrize("value", ["3", "true", '["a", 3]', "[[]]", "2026-01-01"])
def test_a_wrong_path_is_one_line(tmp_path, value):
    recipe = write(tmp_path / "r.toml", f"[data]\ntrain = {value}")
    given_ = tomllib.loads(f"v = {value}")["v"]
    expected = f"{recipe}: data.train: write a file's name or a list of names (given: {given_!r})"
    message = refused(recipe, "task=translate", "budget.time=1m")
    assert message == (f"{recipe}: data.train: true is not a value for it" if value == "true" else expected)
    message = refused(write(tmp_path / "r.toml", "[tokenizer]\nfile = 3"), *ENOUGH)
    assert message == f"{recipe}: tokenizer.file: write a file's name (given: 3)"


def test_every_wrong_value_is_told_with_its_own_origin(tmp_path):
    recipe = write(tmp_path / "r.toml", '[train]\nsteps = "many"\ndropout = 2')
    lines = refused(recipe, *ENOUGH, "model.dim=0.5").splitlines()
    assert [line.partition(": input")[0] for line in lines] == [
        "command line: model.dim",
        f"{recipe}: train.steps",
        f"{recipe}: train.dropout",
    ]


def test_what_is_missing_is_told_with_the_key_to_set():
    message = refused(None, "task=translate")
    assert message.splitlines() == [
        "data is missing: set data.train in the recipe or on the command line as KEY=VALUE",
        "budget is missing: set budget.time or budget.flops or budget.money or budget.energy in the recipe or on the "
        "command line as KEY=VALUE",
    ]
    assert "data.train is missing: set data.train in" in refused(
        None, "data.valid=a", "task=translate", "budget.time=1"
    )
    assert refused(None, *ENOUGH[1:]).startswith("task is missing: set task in")


@pytest.mark.parametrize("override", ["seed", "=3", "  =3", ""])
def test_an_override_without_a_key_or_value_is_refused(override):
    assert "write an override as key=value, like budget.time=10m" in refused(None, override)


def test_files_that_cannot_be_read(tmp_path):
    assert refused(tmp_path / "absent.toml") == f"{tmp_path / 'absent.toml'}: no such recipe file"
    assert "cannot be read as a recipe" in refused(tmp_path)
    broken = write(tmp_path / "broken.toml", "task = \n")
    assert refused(broken).startswith(f"{broken}: not valid TOML: ")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe4"')
    assert "cannot be read as a recipe" in refused(tmp_path / "latin.toml")
    assert "cannot be read as a recipe" in refused(write(tmp_path / "deep.toml", "x = " + "[" * 5000))
    assert "cannot be" in refused(write(tmp_path / "long.toml", "seed = " + "9" * 5000))
    loop = tmp_path / "loop.toml"
    loop.symlink_to(loop)
    assert "loop.toml" in refused(loop)


def test_extends_that_leads_nowhere(tmp_path):
    one = write(tmp_path / "one.toml", 'extends = "two.toml"')
    two = write(tmp_path / "two.toml", 'extends = "./one.toml"')
    assert refused(one) == f"{one}: extends itself, by way of {one}, {two}"
    three = write(tmp_path / "three.toml", 'extends = "absent.toml"')
    assert refused(three) == f"{tmp_path / 'absent.toml'}: no such recipe file (extended by {three})"
    assert "extends must be the name of a file, not 3" in refused(write(tmp_path / "four.toml", "extends = 3"))
    assert "cannot be a file's name" in refused(write(tmp_path / "five.toml", 'extends = "a\\u0000b"'))
    assert "unknown key train.extends" in refused(write(tmp_path / "six.toml", '[train]\nextends = "one.toml"'))


@settings(max_examples=150)
@given(text=st.text(max_size=60) | st.lists(st.text("[]{}=.\"'#\\\n0a1e_-:, ", max_size=8)).map("".join))
def test_any_text_is_a_run_or_a_usage_error(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "r.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    for recipe, overrides in [(folder / "r.toml", ENOUGH), (None, [text]), (None, [*ENOUGH, f"data.train={text}"])]:
        try:
            load_run(recipe, overrides)
        except UsageError as error:
            assert str(error)


# --- written down and read again --------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["\x7f", '"', "\\", "\n# x", "'''", "\u2028"]
)
NAMES = TEXT.filter(lambda text: text and "\0" not in text and text not in (".", "/"))
PATHS = NAMES.map(lambda name: Path("/data") / name.lstrip("/~") / "x")
FILES = PATHS | st.lists(PATHS, max_size=3).map(tuple)
POSITIVE = st.floats(min_value=1e-300, max_value=1e300)
COUNTS = st.integers(1, 2**70)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


RUNS = st.builds(
    Run,
    task=st.sampled_from(["translate", "generate"]),
    name=maybe(st.text(string.ascii_letters + "._-", min_size=1)),
    runs=PATHS,
    seed=st.integers(0, 2**70),
    data=st.builds(Data, train=FILES, valid=maybe(FILES), test=maybe(FILES), source=TEXT, group=TEXT),
    budget=st.builds(Budget, time=st.floats(1e-300, LONGEST_S))
    | st.builds(Budget, flops=st.floats(1e-300, MOST_FLOPS))
    | st.builds(Budget, money=POSITIVE)
    | st.builds(Budget, energy=POSITIVE),
    tokenizer=st.builds(Tokenizer, vocab_size=maybe(st.integers(300, 200_000)), file=maybe(PATHS)),
    limits=st.builds(Limits, size=maybe(COUNTS), memory=maybe(COUNTS), latency=maybe(POSITIVE)),
    machine=st.builds(Here, price_per_hour=maybe(POSITIVE), watts=maybe(POSITIVE)),
    model=st.builds(ModelKeys, dim=maybe(COUNTS), qk_norm=maybe(st.booleans())),
    train=st.builds(
        Train,
        learning_rate=maybe(POSITIVE),
        dropout=maybe(st.floats(0, 0.99)),
        compile=maybe(st.booleans()),
        trackers=st.lists(st.sampled_from(["tensorboard", "wandb"])).map(tuple),
    ),
    evaluate=st.builds(Evaluate, beam_size=COUNTS),
)


@settings(max_examples=120)
@given(run=RUNS, origin=st.text(max_size=10))
def test_a_run_written_as_toml_loads_as_the_same_run(tmp_path_factory, run, origin):
    path = tmp_path_factory.mktemp("round") / "run.toml"
    path.write_bytes(to_toml(Loaded(run, dict.fromkeys(keys(), origin))).encode())
    loaded = load_run(path)
    assert loaded.run == run
    assert to_toml(Loaded(loaded.run, {})) == to_toml(Loaded(run, {}))


def test_a_loaded_run_is_written_with_origins_and_loads_from_anywhere(tmp_path, monkeypatch):
    recipe = write(
        tmp_path / "räum e" / "r.toml",
        'task="translate"\n[data]\ntrain=["a.en", "a.de"]\nsource="日本"\n[budget]\ntime="10m"',
    )
    loaded = load_run(recipe, ["seed=3", "runs=../out"])
    saved = write(tmp_path / "out" / "translate-1" / "run.toml", to_toml(loaded))
    os.chdir("/")
    assert load_run(saved).run == loaded.run
    lines = saved.read_text("utf-8").splitlines()
    assert f'source = "日本"  # {recipe}' in lines
    assert "seed = 3  # command line" in lines
    assert 'target = "target"  # default' in lines
    monkeypatch.chdir(tmp_path)


def test_a_run_made_in_python_is_written_with_absolute_paths(tmp_path):
    run = Run(task="generate", data=Data(train=Path("a.txt")), budget=Budget(time=60))
    saved = write(tmp_path / "elsewhere" / "run.toml", to_toml(Loaded(run, {})))
    found = load_run(saved).run
    assert (found.data.train, found.runs) == (tmp_path / "work" / "a.txt", tmp_path / "work" / "runs")
