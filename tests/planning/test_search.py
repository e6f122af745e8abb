"""Which shapes are worth probing, and how many steps fit a budget."""

import math
from dataclasses import replace

import pytest

from chinchilla.config.errors import BudgetError, UsageError
from chinchilla.config.machine import Machine, MatmulRate
from chinchilla.config.run import Limits, Model
from chinchilla.config.shape import ImageStem, TableStem
from chinchilla.planning.count import num_params
from chinchilla.planning.room import Room
from chinchilla.planning.search import (
    FAR,
    PROBE_BATCH_TOKENS,
    Facts,
    build,
    candidates,
    expected_tokens,
    near,
    typical_params,
    widths,
)

MACHINE = Machine(
    name="a processor", device="cpu", threads=2, memory_bytes=8 * 10**9, torch_version="2",
    measured_at="2026-01-01T00:00:00+00:00", noise=0.1, bytes_per_s=1e10, op_overhead_s=5e-6, has_compiler=True,
    matmul=tuple(
        MatmulRate(m=2048, k=256, n=1024, precision=precision, flops_per_s=rate)
        for precision, rate in (("fp32", 1e11), ("bf16", 5e11))
    ),
)  # fmt: skip
HELP = Facts(
    task="translate", vocab_size=8000, unique_tokens=900_000, num_examples=32_000, mean_source_len=128,
    mean_target_len=128, max_len=128, bytes_per_token=3.5,
)  # fmt: skip
WEB = Facts(
    task="generate", vocab_size=32_000, unique_tokens=10**12, num_examples=10**9, mean_source_len=0,
    mean_target_len=1024, max_len=1024, bytes_per_token=4.2,
)  # fmt: skip
ROOM = Room(8 * 10**9, HELP.batch(PROBE_BATCH_TOKENS), "fp32", "muon")


def found(time_s: float, facts: Facts = HELP, limits: Limits | None = None, fixed: Model | None = None) -> list[int]:
    shapes = candidates(facts, MACHINE, limits or Limits(), fixed or Model(), time_s, ROOM)
    return [num_params(shape) for shape in shapes]


def test_a_batch_of_the_facts() -> None:
    batch = HELP.model_copy(update={"padding": 0.05}).batch(4096)
    assert (batch.size, batch.source_len, batch.target_len, batch.packed) == (34, 128, 128, True)
    assert batch.loss_rows == round(34 * 128 * 0.95)
    assert not WEB.batch(4096).packed
    assert WEB.batch(4096).loss_rows == 4096


def test_a_shape_is_built_for_the_data() -> None:
    shape = build(HELP, Model(), 256, 3, 2)
    assert (shape.num_heads, shape.head_dim, shape.ffn_dim) == (4, 64, 1024)
    assert (shape.vocab_size, shape.max_len, shape.num_encoder_layers, shape.num_decoder_layers) == (8000, 128, 3, 2)
    assert build(HELP, Model(), 128, 2, 2).head_dim == 32


def test_swiglu_has_as_many_parameters_as_the_plain_kind() -> None:
    plain, gated = (build(HELP, Model(activation=kind), 384, 3, 3) for kind in ("relu2", "swiglu"))
    assert num_params(gated) == pytest.approx(num_params(plain), rel=0.02)


def test_fixed_settings_are_kept() -> None:
    fixed = Model(dim=200, num_heads=4, num_kv_heads=2, ffn_dim=300, norm="rms", attention="gated", max_len=256)
    for shape in candidates(HELP, MACHINE, Limits(), fixed, 480, ROOM):
        assert (shape.dim, shape.num_heads, shape.num_kv_heads, shape.head_dim) == (200, 4, 2, 50)
        assert (shape.ffn_dim, shape.norm, shape.attention, shape.max_len) == (300, "rms", "gated", 256)


def test_a_wholly_fixed_shape_is_the_only_candidate() -> None:
    fixed = Model(dim=320, num_encoder_layers=5, num_decoder_layers=1)
    assert found(480, fixed=fixed) == [num_params(build(HELP, fixed, 320, 5, 1))]


def test_packed_rows_fit_a_model_whose_texts_are_shorter() -> None:
    assert build(HELP, Model(max_len=64), 256, 3, 3).max_len == HELP.max_len


def test_one_fixed_side_leaves_the_other_open() -> None:
    shapes = candidates(HELP, MACHINE, Limits(), Model(num_decoder_layers=2), 3600, ROOM)
    assert {shape.num_decoder_layers for shape in shapes} == {2}
    assert len({shape.num_encoder_layers for shape in shapes}) > 1


@pytest.mark.parametrize("time_s", [60, 480, 3600, 36_000])
def test_candidates_would_see_a_sensible_number_of_tokens(time_s: float) -> None:
    shapes = candidates(HELP, MACHINE, Limits(), Model(), time_s, ROOM)
    assert shapes
    assert [num_params(s) for s in shapes] == sorted(num_params(s) for s in shapes)
    for shape in shapes if len(shapes) > 1 else []:
        tokens = expected_tokens(shape, HELP, MACHINE, time_s, "fp32", "muon")
        assert min(HELP.unique_tokens, num_params(shape)) <= tokens
    # What is compared is no larger for seeing less than 40 epochs than the rule's size whose own budget shows as many.
    most = typical_params(1e30, 1.0, HELP.unique_tokens)
    flops = 6 * most * 40 * HELP.unique_tokens
    assert typical_params(flops) == pytest.approx(most)
    assert all(num_params(shape) <= FAR * most for shape in near(shapes, typical_params(flops, 1.0), 5))


def test_near_keeps_the_shapes_around_the_wanted_size() -> None:
    shapes = candidates(HELP, MACHINE, Limits(), Model(), 3600, ROOM)
    counts = [num_params(shape) for shape in near(shapes, 6e6, 3)]
    assert counts == sorted(counts)
    assert len(set(counts)) == 3
    assert min(counts) < 6e6 < max(counts)
    nearest = min((num_params(shape) for shape in shapes), key=lambda count: abs(math.log(count / 6e6)))
    assert nearest in counts
    assert all(6e6 / FAR <= count <= 6e6 * FAR for count in counts)
    assert near(shapes[:1], 6e6, 3) == shapes[:1]
    assert near(shapes, 1e12, 3) == [max(shapes, key=num_params)]


def test_the_rule_of_thumb_grows_with_the_budget() -> None:
    assert typical_params(1e14) == pytest.approx(5e6)
    assert typical_params(1e14) < typical_params(1e16) < 1e16**0.5


def test_few_labels_are_worth_few_parameters_however_much_the_budget_buys() -> None:
    """Else a minute on 400 rows bought 19 million parameters, so that none of them was seen more than 40 times."""
    few = [typical_params(1e14, 1.0, unique) for unique in (400, 4_000, 40_000)]
    assert few == sorted(few)
    assert few[0] < 2e5
    # At the size of the rule its own budget shows each label 40 times.
    assert 1e5 * (few[0] / 5e6) ** (1 / 0.4) * 1e9 / (6 * few[0] * 400) == pytest.approx(40)
    assert typical_params(1e14, 1.0, 10**9) == typical_params(1e14)
    # The smallest shape stays among those to choose from, for however long it would train.
    tiny = HELP.model_copy(update={"unique_tokens": 20_000, "num_examples": 700})
    shapes = candidates(tiny, MACHINE, Limits(), Model(), 100_000, ROOM)
    assert near(shapes, typical_params(1e18, 1.0, 20_000), 1) == [build(tiny, Model(), 128, 2, 2)]


def test_an_image_s_label_counts_as_a_token_whatever_its_patches() -> None:
    """Else ten minutes bought a network of millions and not one pass over the digits to train it."""
    stem = ImageStem(height=28, width=28, channels=1, patch=4)
    digits = Facts(
        task="classify_image", vocab_size=10, unique_tokens=60_000, num_examples=60_000, mean_source_len=50,
        mean_target_len=0, max_len=50, bytes_per_token=784, labels_per_row=1, num_classes=10, stem=stem,
    )  # fmt: skip
    scenes = digits.model_copy(update={"task": "detect", "mean_source_len": 257, "labels_per_row": 3.25, "boxes": True})
    assert (digits.sparsity, HELP.sparsity, WEB.sparsity) == (50, 1, 1)
    assert scenes.sparsity == pytest.approx(79, rel=0.01)
    assert typical_params(1e14, digits.sparsity) == pytest.approx(typical_params(2e12))
    assert 0.5e6 < typical_params(6e13, digits.sparsity) < 1.5e6
    # Digits want less than that: 172 thousand did as well as 678 thousand with five times the FLOPs.
    assert 172_000 / FAR < digits.typical_params(6e13) < 172_000 * FAR
    shapes = candidates(digits, MACHINE, Limits(), Model(), 600, ROOM)
    assert [shape.dim for shape in near(shapes, 2.4e5, 5)] == [64, 96]
    assert (widths(digits)[0], widths(scenes)[0], widths(HELP)[0]) == (64, 128, 128)
    assert scenes.typical_params(1e14) == typical_params(1e14, scenes.sparsity, scenes.unique_tokens)
    assert HELP.typical_params(1e12) == typical_params(1e12, 1.0, HELP.unique_tokens)
    columns = digits.model_copy(update={"task": "classify_table", "stem": TableStem(num_numeric=49)})
    assert columns.sparsity == 1
    few = columns.model_copy(update={"unique_tokens": 400})
    seen = [each.most_tokens for each in (columns, few, digits, HELP)]
    assert seen == [8 * 60_000, 10_000, math.inf, math.inf]
    assert build(digits, Model(), 128, 2, 0).activation == "gelu"
    assert build(columns, Model(), 128, 2, 0).activation == build(HELP, Model(), 128, 2, 2).activation == "relu2"
    assert build(digits, Model(activation="swiglu"), 128, 2, 0).activation == "swiglu"


def test_more_time_allows_larger_models() -> None:
    assert max(found(120)) < max(found(1200)) < max(found(12_000))


def test_a_budget_too_small_for_any_gets_the_smallest() -> None:
    assert found(1) == [num_params(build(HELP, Model(), 128, 2, 2))]


def test_little_data_and_much_time_get_the_largest() -> None:
    tiny = HELP.model_copy(update={"unique_tokens": 20_000})
    assert found(36_000, facts=tiny)[-1] == max(found(36_000, facts=tiny)) > 5e7


def test_generate_has_decoders_only() -> None:
    facts = HELP.model_copy(update={"task": "generate", "mean_source_len": 0.0})
    for shape in candidates(facts, MACHINE, Limits(), Model(), 480, ROOM):
        assert shape.num_encoder_layers == 0 < shape.num_decoder_layers
    with pytest.raises(UsageError, match=r"num_encoder_layers.*decoder only"):
        candidates(facts, MACHINE, Limits(), Model(num_encoder_layers=2), 480, ROOM)


def test_limits_are_kept() -> None:
    assert max(found(3600, limits=Limits(size=20_000_000))) <= 5_000_000 < max(found(3600))


def test_an_impossible_memory_says_what_is_needed() -> None:
    tight = replace(ROOM, size_bytes=10_000_000)
    with pytest.raises(
        BudgetError, match=r"takes \d+ MB of memory.*10 MB are left of limits\.memory, 200 MB: raise it"
    ):
        candidates(HELP, MACHINE, Limits(memory=200_000_000), Model(), 480, tight)
    with pytest.raises(BudgetError, match=r"10 MB are left of this machine: fix less"):
        candidates(HELP, MACHINE, Limits(), Model(), 480, tight)


def test_an_impossible_size_names_the_smallest_model() -> None:
    with pytest.raises(BudgetError, match=r"limits\.size is 1 MB.*2\+2 layers of 128.*takes 7\.\d+ MB.*vocab_size"):
        found(480, limits=Limits(size=1_000_000))


def test_contradicting_settings_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\[model\].*multiple of num_kv_heads"):
        found(480, fixed=Model(num_heads=4, num_kv_heads=3))
