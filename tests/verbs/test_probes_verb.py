"""What a plan says of the shape that it took."""

import json
import re
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from chinchilla.verbs import probes


@pytest.mark.parametrize(("block_s", "tried"), [(None, True), (30.0, True), (90.0, False)])
def test_compiling_is_tried_where_it_may_earn_back_what_a_block_took_here(monkeypatch, small_machine, block_s, tried):
    """An hour gains 327 s by 1.1 times; two kinds of blocks cost 60 s by the rule of thumb, or twice a block's time."""
    shape = SimpleNamespace(num_encoder_layers=2, num_decoder_layers=2)
    prepared = SimpleNamespace(run=SimpleNamespace(train=SimpleNamespace(compile=None)))
    machine = small_machine.model_copy(update={"has_compiler": True, "compile_time_s": block_s})

    class TriedError(Exception):
        pass

    def compiling(*given):
        raise TriedError

    monkeypatch.setattr(probes, "_candidate", compiling)
    monkeypatch.setattr(probes, "_name", lambda shape: "")
    best = SimpleNamespace(shape=shape, trainer=MagicMock())
    if tried:
        with pytest.raises(TriedError):
            probes._compiled(best, prepared, machine, 3600.0, lambda text: None)
    else:
        told = "it gains about 327 s and costs about 180 s, a block's measured time"
        assert probes._compiled(best, prepared, machine, 3600.0, lambda text: None) == (None, told)


@pytest.mark.parametrize(
    ("fixed", "said"),
    [
        (["model.dim=128"], r"^of \d+ shapes the nearest to the rule of thumb's size"),
        (["model.dim=128", "model.num_encoder_layers=2", "model.num_decoder_layers=2"], "the one shape that fits"),
    ],
    ids=["of several", "the only one"],
)
def test_a_shape_that_was_compared_with_none_is_told_so(chinchilla, numbers, fixed, said):
    words = ["task=translate", f"data.train={numbers / 'train.tsv'}", "budget.time=60", "train.threads=1"]
    words += ["tokenizer.vocab_size=300", "train.probes=false", "train.steps=5", "--json"]
    code, out, err = chinchilla("plan", *words, *fixed)
    assert code == 0, err
    (model,) = [line for line in json.loads(out.splitlines()[-1])["decisions"] if line["name"] == "model"]
    assert re.search(said, model["reason"])
