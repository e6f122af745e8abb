"""Published GPU memory and iterations: the formula against the tensors it counts, the counts against the paper."""

import pytest

from chinchilla.planning.megatron import (
    PUBLISHED,
    Published,
    activation_bytes,
    fit_efficiency,
    layer_activation_bytes,
    state_bytes,
    step_time,
)

GIB = 2.0**30
MODES = (("full", False), ("selective", True))
each = pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.model.name)


def tensors(row: Published, sequence_parallel: bool, core: bool) -> float:
    """What a layer keeps, one tensor after the other (Korthikanti 2022, §4.1 and figure 5): bytes on one GPU."""
    model = row.model
    stream = model.length * model.micro_batch * model.dim
    scores = model.num_heads * model.length * model.length * model.micro_batch
    everywhere = [
        2 * stream,  # input of the first norm
        2 * stream,  # its output, which queries, keys and values are made of
        1 * stream,  # mask of the dropout after attention
        2 * stream,  # input of the second norm
        2 * stream,  # its output, which goes into the MLP
        1 * stream,  # mask of the dropout after the MLP
    ]
    divided = [2 * stream, 2 * stream, 2 * stream]  # queries, keys, values
    divided += [2 * stream]  # attention's answer, before its projection
    divided += [8 * stream, 8 * stream]  # GELU's input and output
    if core:
        divided += [2 * scores, 1 * scores, 2 * scores]  # softmax, its dropout's mask and output
    return sum(everywhere) / (model.tensor if sequence_parallel else 1) + sum(divided) / model.tensor


@each
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_the_formula_is_the_sum_of_the_tensors(row: Published, sequence_parallel: bool, recompute: str) -> None:
    counted = tensors(row, sequence_parallel, core=recompute == "none")
    assert layer_activation_bytes(row.model, recompute, sequence_parallel) == pytest.approx(counted, rel=1e-12)


@each
def test_published_memory(row: Published) -> None:
    assert activation_bytes(row.model, "none", False) / GIB == pytest.approx(row.none_gib, rel=1e-9)
    assert activation_bytes(row.model, "selective", True) / GIB == pytest.approx(row.selective_gib, rel=1e-9)
    assert state_bytes(row.model) / GIB == pytest.approx(row.state_gib, rel=1e-9)


def test_published_iterations_from_an_efficiency_fitted_on_the_smallest_model() -> None:
    untuned = [[step_time(row.model, mode, sequence).total_s for mode, sequence in MODES] for row in PUBLISHED]
    measured = [[row.full_s, row.selective_s] for row in PUBLISHED]
    efficiency = fit_efficiency(untuned[0], measured[0])
    errors = [
        abs(time_s / efficiency / truth_s - 1)
        for times, truths in zip(untuned[1:], measured[1:], strict=True)
        for time_s, truth_s in zip(times, truths, strict=True)
    ]
    assert 0.7 < efficiency < 0.85
    assert sum(errors) / len(errors) < 0.0365  # Calculon's mean over all eight
    assert max(errors) < 0.06
    assert all(
        time_s < truth_s for pair in zip(untuned, measured, strict=True) for time_s, truth_s in zip(*pair, strict=True)
    )


def test_an_efficiency_is_what_scales_the_times_to_the_measured() -> None:
    assert fit_efficiency([1.0, 3.0], [2.0, 6.0]) == pytest.approx(0.5)


@each
def test_recomputing_costs_time_and_saves_memory(row: Published) -> None:
    model = row.model
    times = [step_time(model, mode, True).total_s for mode in ("none", "selective", "full")]
    sizes = [activation_bytes(model, mode, True) for mode in ("none", "selective", "full")]
    assert times == sorted(times)
    assert sizes == sorted(sizes, reverse=True)
