"""What a plan says of the shape that it took."""

import json
import re

import pytest


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
