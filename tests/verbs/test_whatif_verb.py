"""`chinchilla whatif` on a tiny real task: cases side by side, nothing trained, and what is refused."""

import json
import math

import pytest

from chinchilla.config.errors import UsageError
from chinchilla.config.estimate import Estimate
from chinchilla.planning.count import num_params
from chinchilla.verbs import whatif as verb
from chinchilla.verbs.whatif import small_loss, whatif


@pytest.fixture
def words(numbers):
    return ["task=translate", f"data.train={numbers / 'train.tsv'}", "train.threads=1", "tokenizer.vocab_size=300"]


@pytest.fixture
def compare(words, chinchilla):
    def run(*more):
        code, out, err = chinchilla("whatif", *words, *more, "--json")
        assert code == 0, err
        return json.loads(out.splitlines()[-1])["cases"]

    return run


@pytest.fixture
def fast(small_machine, tmp_path):
    """A machine ten times as fast as this one, in a file."""
    rates = tuple(rate.model_copy(update={"flops_per_s": 10 * rate.flops_per_s}) for rate in small_machine.matmul)
    quick = {"matmul": rates, "bytes_per_s": 10 * small_machine.bytes_per_s}
    machine = small_machine.model_copy(update=quick | {"op_overhead_s": small_machine.op_overhead_s / 10})
    path = tmp_path / "fast.json"
    path.write_text(machine.model_dump_json())
    return path


def test_more_time_buys_more_tokens_and_no_more_loss(compare):
    # One shape: where a budget grows and the data do not, larger ones are taken, which see fewer tokens.
    shape = ["model.dim=128", "model.num_encoder_layers=2", "model.num_decoder_layers=2"]
    first, second = compare("budget.time=2m", *shape, "--against", "budget.time=1h")
    assert (first["name"], second["name"]) == ("as given", "budget.time=1h")
    for case in (first, second):
        assert set(case["predicted"]) == {
            "step_time_s", "time_s", "tokens", "flops", "loss", "memory_bytes", "size_bytes", "latency_s"
        }  # fmt: skip
        for estimate in case["predicted"].values():
            Estimate.model_validate(estimate)
    assert second["predicted"]["tokens"]["p50"] > 25 * first["predicted"]["tokens"]["p50"]
    assert second["predicted"]["loss"]["p50"] <= first["predicted"]["loss"]["p50"]
    assert (first["predicted"]["time_s"]["p10"], second["predicted"]["time_s"]["p90"]) == (120, 3600)


def test_a_faster_machine_does_the_same_steps_in_a_tenth_of_the_time(compare, fast):
    fixed = ["budget.flops=1e12", "train.steps=100", "model.dim=128"]
    fixed += ["model.num_encoder_layers=2", "model.num_decoder_layers=2", "train.precision=fp32"]
    here, there = compare(*fixed, "--machine", "here", "--machine", str(fast))
    assert there["shape"] == here["shape"]
    assert here["predicted"]["time_s"]["p50"] == pytest.approx(10 * there["predicted"]["time_s"]["p50"])
    assert here["predicted"]["tokens"] == there["predicted"]["tokens"]
    assert there["predicted"]["tokens"]["p10"] == there["predicted"]["tokens"]["p90"]


def test_money_is_the_hours_times_the_price(compare, fast):
    machines = ("--machine", "here", "--machine", str(fast), "--price", "2", "--price", "30")
    here, there = compare("budget.time=30m", *machines)
    assert here["predicted"]["money"]["p50"] == pytest.approx(1)
    assert there["predicted"]["money"]["p50"] == pytest.approx(15)
    assert "money" not in compare("budget.time=30m")[0]["predicted"]


def test_a_budget_in_another_unit_takes_the_place_of_the_first(compare):
    _, second = compare("budget.time=2m", "--against", "budget.flops=1e12 model.dim=128")
    assert second["shape"]["dim"] == 128
    assert second["predicted"]["flops"]["p50"] == pytest.approx(1e12, rel=0.2)


def test_fixed_steps_take_a_model_that_gets_through_them_in_time(compare, fast, monkeypatch):
    # As if the few sentences were worth more than the smallest model, which a slow machine comes to anyway.
    monkeypatch.setattr("chinchilla.planning.search.MOST_EPOCHS", 10**6)
    words = ("budget.time=10m", "--machine", fast)
    (free,) = compare(*words)
    steps = round(1000 / free["predicted"]["step_time_s"]["p50"])
    held, never = compare(*words, f"train.steps={steps}", "--against", "train.steps=1000000000")
    assert held["num_params"] < free["num_params"]
    assert held["training"]["steps"] == steps and held["predicted"]["time_s"]["p50"] <= 600
    assert never["shape"] is None and "1,000,000,000 (train.steps) of the quickest model" in never["basis"]


def test_from_the_laws_range_on_the_law_decides(compare, monkeypatch):
    monkeypatch.setattr("chinchilla.planning.by_law.LEAST_TOKENS", 0)  # as if so few sentences were text enough
    (case,) = compare("budget.flops=2e18", "model.dim=512")
    assert "besiroglu law" in case["basis"]
    (case,) = compare("budget.flops=1e13")
    assert "rules of thumb" in case["basis"]


def test_no_law_decides_where_text_is_far_shorter_than_any_that_it_knows(compare):
    """It would foretell more than chance's loss, and fall to a smaller model where a budget grows into its range."""
    below, within = compare("budget.flops=1.3e18", "--against", "budget.flops=1.5e18")
    assert "little data" in within["basis"]
    assert within["num_params"] == below["num_params"]
    assert within["predicted"]["loss"] == below["predicted"]["loss"]
    assert within["predicted"]["loss"]["p90"] < math.log(300)


def test_what_cannot_be_met_says_why_beside_what_can(compare):
    first, second = compare("budget.time=2m", "--against", "limits.size=1kB")
    assert first["shape"] is not None
    assert second["shape"] is None
    assert "limits.size" in second["basis"]


def test_no_probe_and_no_training_is_run(words, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("a model was made")

    monkeypatch.setattr("chinchilla.models.transformer.Transformer.__init__", never)
    (case,) = whatif(None, [*words, "budget.time=2m"], [], [verb.HERE])
    assert num_params(case.shape) > 0


def test_data_are_read_once_for_all_cases_that_share_them(words, monkeypatch):
    read = []
    real = verb.prepare
    monkeypatch.setattr(verb, "prepare", lambda run, tell: read.append(1) or real(run, tell))
    whatif(None, [*words, "budget.time=2m"], ["budget.time=5m", "tokenizer.vocab_size=350"], [verb.HERE])
    assert len(read) == 2


def test_beams_of_another_case_are_counted(compare):
    many, one = compare("budget.time=2m", "model.dim=128", "--against", "evaluate.beam_size=1")
    assert one["predicted"]["latency_s"]["p50"] < many["predicted"]["latency_s"]["p50"]


def test_wrong_words_are_found_before_data_are_read(words, monkeypatch, tmp_path):
    monkeypatch.setattr(verb, "prepare", lambda *args: pytest.fail("data were read"))
    nowhere = [f"model.start={tmp_path / 'none'}"]
    for against, machine in ((["budget.time=-1h"], verb.HERE), (nowhere, verb.HERE), ([], str(tmp_path / "none.json"))):
        with pytest.raises(UsageError):
            whatif(None, [*words, "budget.time=2m"], against, [machine])


def test_the_table_goes_to_standard_output(words, chinchilla):
    code, out, _ = chinchilla("whatif", *words, "budget.time=2m", "--against", "budget.time=1h")
    assert code == 0
    for text in ("as given", "budget.time=1h", "validation loss", "peak memory", "rests on", "guess"):
        assert text in out


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        (["--against", "budget.tim=1h"], "budget.time"),
        (["--against", "budget.time='1h"], "--against"),
        (["--against", "nonsense"], "key=value"),
        (["--machine", "none.json"], "none.json"),
        (["--price", "1", "--price", "2"], "--price"),
        (["--price", "-1"], "--price"),
        (["--price", "nan"], "--price"),
    ],
)
def test_wrong_words_are_named(words, chinchilla, more, wrong):
    code, _, err = chinchilla("whatif", *words, "budget.time=2m", *more)
    assert (code, wrong in err) == (2, True), err


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"name": "x"}'])
def test_a_machine_file_that_is_none_is_named(words, chinchilla, tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    code, _, err = chinchilla("whatif", *words, "budget.time=2m", "--machine", tmp_path / "bad.json")
    assert (code, "bad.json" in err, "chinchilla measure --json" in err) == (2, True, True)


@pytest.mark.parametrize(
    "wrong",
    [{"bytes_per_s": 0}, {"op_overhead_s": -1}, {"matmul": []}, {"threads": 0}, {"memory_bytes": -1}, {"device": "x"}],
    ids=str,
)
def test_a_machine_that_cannot_be_is_named(words, fast, chinchilla, wrong):
    fast.write_text(json.dumps(json.loads(fast.read_text()) | wrong))
    code, _, err = chinchilla("whatif", *words, "budget.time=2m", "--machine", fast)
    assert (code, f"{fast}: {next(iter(wrong))}: " in err) == (2, True), err


def test_the_rule_of_thumb_for_losses_falls_with_what_tokens_are_worth():
    once = small_loss("translate", 4000, 1e6, 1e7)
    assert small_loss("translate", 4000, 1e7, 1e7).p50 < once.p50
    assert small_loss("translate", 4000, 1e6, 1e5).p50 > once.p50
    assert small_loss("generate", 4000, 1e6, 1e7).p50 > once.p50
    far = small_loss("translate", 4000, 1e9, 1e9)
    assert far.p90 / far.p50 > once.p90 / once.p50


def test_a_step_that_was_fitted_to_real_ones_is_told_so(compare, monkeypatch):
    """Its spread and source go on to the tokens, whose p10 is what the slowest steps leave."""

    class Fitted:
        def estimate(self):
            return Estimate(p10=0.08, p50=0.1, p90=0.2, unit="s", source="measured")

    monkeypatch.setattr(verb, "step_time", lambda *args: Fitted())
    (case, _) = compare("budget.time=2m", "--against", "budget.time=3m")
    tokens = case["predicted"]["tokens"]
    assert "steps measured on" in case["basis"] and tokens["source"] == "measured"
    assert (tokens["p10"] / tokens["p50"], tokens["p90"] / tokens["p50"]) == pytest.approx((0.5, 1.25))
