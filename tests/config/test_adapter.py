"""Settings of an adapter: defaults by kind, and what does not go together is told."""

import pytest
from pydantic import ValidationError

from chinchilla.config.adapter import BRANCH_ENDS, TARGETS, Adapter


def test_the_defaults_of_each_kind():
    lora, ada, narrow = Adapter(), Adapter(kind="adalora", rank=5), Adapter(kind="bottleneck", rank=16)
    assert (lora.rank, lora.scale, lora.first_rank, lora.maps) == (8, 2.0, 8, TARGETS)
    assert (ada.rank, ada.first_rank, ada.maps) == (5, 8, TARGETS)
    assert narrow.maps == BRANCH_ENDS


def test_alpha_is_divided_by_the_rank():
    assert Adapter(rank=4, alpha=1).scale == 0.25


def test_it_says_which_maps_and_parameters_are_meant():
    adapter = Adapter(targets=("mlp.up",), also=("norms",))
    names = ["decoder.layers.10.mlp.up", "encoder.layers.0.mlp.up", "decoder.layers.1.mlp.down", "embed.mlp.up"]
    assert [adapter.adapts(name) for name in names] == [True, True, False, False]
    names = [
        "decoder.norm.weight",
        "decoder.layers.0.attention.query_norm.weight",
        "head.weight",
        "embed.tokens.weight",
    ]
    assert [adapter.trains(name) for name in names] == [True, True, False, False]
    assert Adapter(also=("head",)).trains("head.bias")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rank": 0}, "greater than 0"),
        ({"targets": ()}, "at least 1"),
        ({"targets": ("head",)}, "attention.qkv"),
        ({"dropout": 1.0}, "less than 1"),
        ({"colour": 1}, "not permitted"),
        ({"kind": "bottleneck", "alpha": 2.0}, "leave out alpha"),
        ({"kind": "bottleneck", "targets": ("mlp.up",)}, "where a branch ends"),
        ({"kind": "adalora", "rank": 8, "allot": {"first_rank": 7}}, "below the rank"),
        ({"allot": {"hold": 0.7, "settle": 0.3}}, "leave no steps"),
    ],
)
def test_what_does_not_go_together_is_told(given, told):
    with pytest.raises(ValidationError, match=told):
        Adapter.model_validate(given)


@pytest.mark.parametrize("kind", ["lora", "adalora", "bottleneck"])
def test_settings_written_out_are_read_back(kind):
    adapter = Adapter(kind=kind, rank=3, also=("head",))
    assert Adapter.model_validate_json(adapter.model_dump_json()) == adapter
