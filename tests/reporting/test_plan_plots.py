"""The charts of a plan: what they show adds up to what the planner counts."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from reporting_fakes import make_considered, make_machine, make_plan, make_shape, make_training

from chinchilla.config.machine import MatmulRate
from chinchilla.config.plan import Rows
from chinchilla.planning.count import Batch, flops, flops_per_token
from chinchilla.planning.example import cluster_example
from chinchilla.planning.frontier import frontier
from chinchilla.planning.laws import BESIROGLU
from chinchilla.planning.machine import step_time
from chinchilla.planning.memory import memory
from chinchilla.reporting import law_plots, layout_plots, layout_tables, memory_plots, plan_plots
from chinchilla.reporting.canvas import FIRST, MUTED, SECOND

SHAPE, BATCH, TRAINING = make_shape(192), Batch(8, 144, 128), make_training()
MACHINE = make_machine().model_copy(
    update={
        "matmul": tuple(
            MatmulRate(m=m, k=k, n=n, precision=precision, flops_per_s=rate)
            for m, k, n, rate in ((512, 64, 64, 3e10), (2048, 192, 768, 2.1e11), (4096, 512, 512, 1.5e11))
            for precision in ("fp32", "bf16")
        )
    }
)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@settings(max_examples=25)
@given(
    layers=st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(any),
    settings_=st.fixed_dictionaries(
        {
            "precision": st.sampled_from(["fp32", "bf16"]),
            "optimizer": st.sampled_from(["adamw", "muon"]),
            "accumulation": st.sampled_from([1, 2, 6]),
            "recompute": st.booleans(),
            "dropout": st.sampled_from([0.0, 0.1]),
            "ema_decay": st.sampled_from([0.0, 0.99]),
        }
    ),
    position=st.sampled_from(["rotary", "sinusoidal", "learned"]),
    norm=st.sampled_from(["layer", "rms"]),
)
def test_moments_add_up_to_the_phases_of_memory(layers, settings_, position, norm) -> None:
    shape = SHAPE.model_copy(
        update={
            "num_encoder_layers": layers[0],
            "num_decoder_layers": layers[1],
            "position": position,
            "norm": norm,
        }
    )
    batch = Batch(4, 32 if layers[0] else 0, 24 if layers[1] else 0, packed=all(layers))
    training = TRAINING.model_copy(update=settings_)
    found = memory_plots.moments(shape, batch, training, "cpu")
    expected = memory(
        shape,
        batch,
        training.precision,
        training.optimizer,
        ema=training.ema_decay > 0,
        dropout=training.dropout > 0,
        accumulation=training.accumulation,
        recompute=training.recompute,
        workers=2 if training.accumulation > 1 else 1,
    )
    totals = {moment.phase: moment.total for moment in found}
    assert {phase: totals[phase] for phase in expected.phases} == expected.phases
    assert max(totals.values()) == expected.peak
    for moment in found:
        assert min(getattr(moment, name) for name in memory_plots.HELD) >= 0, moment
        assert moment.weights == expected.state.weights
        assert moment.optimizer == expected.state.optimizer


def test_activations_grow_forward_to_all_that_is_saved_and_shrink_backward() -> None:
    found = memory_plots.moments(SHAPE, BATCH, TRAINING, "cpu")
    whole = next(index for index, moment in enumerate(found) if moment.phase == "forward")
    sizes = [moment.activations for moment in found]
    assert sizes[:whole] == sorted(sizes[:whole])
    backward = [moment.activations for moment in found if moment.phase.startswith("backward")]
    assert backward == sorted(backward, reverse=True)
    saved = memory(SHAPE, BATCH, "bf16", "muon").saved
    table = 4 * SHAPE.vocab_size * SHAPE.dim
    assert saved - 2 * table < sizes[whole] < saved - table  # the loss leaves the table's gradient ready made
    again = memory_plots.moments(SHAPE, BATCH, TRAINING.model_copy(update={"recompute": True}), "cpu")
    assert again[whole].activations < sizes[whole] / 2


def test_the_stack_is_drawn_to_scale() -> None:
    found = memory_plots.moments(SHAPE, BATCH, TRAINING, "cpu")
    axes = Figure().subplots()
    memory_plots._stack(axes, found)
    edges = memory_plots._edges(found)
    top = axes.collections[-1].get_paths()[0].vertices
    assert top[:, 1].max() <= max(moment.total for moment in found)
    drawn = {collection.get_label() for collection in axes.collections}
    assert drawn == {name for name in memory_plots.HELD if any(getattr(moment, name) for moment in found)}
    weights = axes.collections[0].get_paths()[0].vertices
    assert weights[:, 1].max() == found[0].weights
    assert edges[-1] == axes.get_xlim()[1]
    peak = max(found, key=lambda moment: moment.total)
    assert any(peak.phase in text and text.startswith("peak ") for text in texts(memory_plots.memory_chart(found)))


def test_operators_hold_all_products_of_a_step() -> None:
    training = TRAINING.model_copy(update={"accumulation": 3})
    found = plan_plots.operators(SHAPE, BATCH, MACHINE, training)
    assert sum(each.flops for each in found) == 3 * flops(SHAPE, BATCH).step
    whole = step_time(SHAPE, BATCH, MACHINE, "bf16", "muon", 3)
    assert sum(each.time_s for each in found) == pytest.approx(whole.products_s + whole.attention_s)
    assert sum(each.time_s for each in found if each.attends) == pytest.approx(whole.attention_s)
    assert [each.time_s for each in found] == sorted((each.time_s for each in found), reverse=True)
    assert {each.name for each in found} >= {"head", "mlp up", "attention scores, values", "cross query"}


def test_intensity_is_flops_over_what_a_product_reads_and_writes() -> None:
    head = next(each for each in plan_plots.operators(SHAPE, BATCH, MACHINE, TRAINING) if each.name == "head")
    m, k, n = 1024, 192, 8000
    assert head.intensity == pytest.approx(2 * m * k * n / (2 * (m * k + k * n + m * n)))


def test_shares_are_of_the_whole_step() -> None:
    told = dict(plan_plots.shares(SHAPE, BATCH, MACHINE, TRAINING))
    whole = step_time(SHAPE, BATCH, MACHINE, "bf16", "muon")
    assert sum(told.values()) == pytest.approx(1)
    assert told["traffic"] == pytest.approx(whole.traffic_s / whole.total_s)
    assert told["muon"] == pytest.approx(whole.optimizer_s / whole.total_s)


def test_the_roof_has_the_machines_peak_and_bandwidth() -> None:
    axes = Figure().subplots()
    found = plan_plots.operators(SHAPE, BATCH, MACHINE, TRAINING)
    plan_plots._roof(axes, MACHINE, "bf16", found)
    (low, knee, _), (start, peak, end) = axes.lines[0].get_data()
    assert peak == end == 2.1e11
    assert start / low == pytest.approx(MACHINE.bytes_per_s)
    assert knee == pytest.approx(2.1e11 / MACHINE.bytes_per_s)
    points = np.column_stack(axes.lines[-1].get_data())
    assert points == pytest.approx(np.array([(each.intensity, each.flops_per_s) for each in found]))
    named = {text.get_text(): text.xy for text in axes.texts}
    assert named == {each.name: (each.intensity, each.flops_per_s) for each in found}


def test_names_beside_the_roofline_do_not_lie_over_each_other() -> None:
    axes = Figure().subplots()
    plan_plots._roof(axes, MACHINE, "bf16", plan_plots.operators(SHAPE, BATCH, MACHINE, TRAINING))
    heights = sorted(text.get_position()[1] for text in axes.texts)
    assert min(np.diff(heights)) > 0.07
    assert heights[-1] <= 1


def test_a_machine_without_rates_of_the_plans_precision_has_no_roofline() -> None:
    bare = make_machine().model_copy(update={"matmul": ()})
    titles = [
        title for title, _, _ in plan_plots.reckoned_charts(make_plan().model_copy(update={"machine": bare}), BATCH)
    ]
    assert titles == ["Memory over a step"]


def test_the_batch_of_a_plan_is_that_of_its_data() -> None:
    rows = Rows(num_examples=9, mean_source_len=100, mean_target_len=90, max_len=100, padding=0.1)
    plan = make_plan().model_copy(update={"rows": rows})
    batch = plan_plots.plan_batch(plan)
    assert (batch.source_len, batch.target_len, batch.packed) == (100, 90, True)
    assert batch.loss_rows == pytest.approx(plan.training.batch_tokens, rel=0.5 / batch.size)
    assert batch.loss_rows == round(0.9 * batch.target_rows)


def test_the_batch_of_a_plan_without_rows_is_its_tokens_in_full_rows() -> None:
    plan = make_plan()
    batch = plan_plots.plan_batch(plan)
    assert (batch.source_len, batch.target_len) == (plan.shape.max_len, plan.shape.max_len)
    assert batch.packed
    assert batch.target_rows == pytest.approx(plan.training.batch_tokens, rel=0.5 / batch.size)
    text = plan.model_copy(
        update={"task": "generate", "shape": plan.shape.model_copy(update={"num_encoder_layers": 0})}
    )
    assert plan_plots.plan_batch(text) == replace(batch, source_len=0, packed=False)
    assert flops_per_token(text.shape, plan_plots.plan_batch(text)) > 0


def test_layouts_are_numbered_by_time_and_the_front_is_joined() -> None:
    found = cluster_example().large
    items = layout_tables.shown_layouts(found, layout_plots.MOST_LAYOUTS)
    times = [item.step_time_s.p50 for item in items]
    assert times == sorted(times)
    assert found.recommended in items
    axes = Figure().subplots()
    layout_plots._front(axes, found, items)
    front = [item for item in items if item in found.front]
    drawn_times, drawn_sizes = axes.lines[0].get_data()
    assert drawn_times == pytest.approx([item.step_time_s.p50 for item in front])
    assert drawn_sizes == pytest.approx([item.memory_bytes.p50 for item in front])
    labels = [text.get_text() for text in axes.texts]
    assert labels == [str(number) for number in range(1, len(items) + 1)]
    shown = texts(layout_plots.layout_chart(found))
    assert any(text.startswith("1  ") for text in shown)


def test_plans_are_drawn_where_they_lie_and_the_front_is_named() -> None:
    found = make_considered()
    svg = plan_plots.front_chart(found, found[1].shape)
    shown = texts(svg)
    assert {"size, MB", "answer, ms", "peak memory, GB", "loss, nats a token"} <= set(shown)
    assert [text for text in shown if "×" in text] == ["3+3×192", "3+3×128"]  # those beaten have no name
    axes = Figure().subplots()
    plan_plots._weighed(axes, found, [each.latency_s.p50 for each in found], found[1].shape)
    joined, *points = (np.column_stack(line.get_data()).tolist() for line in axes.lines)
    assert points == [[[each.latency_s.p50, each.loss.p50]] for each in found]
    assert joined == [points[0][0], points[1][0]]
    colors = [line.get_color() for line in axes.lines[1:]]
    assert colors == [FIRST, SECOND, MUTED, MUTED]


def test_one_plan_alone_is_no_front() -> None:
    found = make_considered()
    assert plan_plots.front_chart((), found[0].shape) == plan_plots.front_chart(found[:1], found[0].shape) == ""


def test_contours_of_a_plans_law_have_the_plan_and_the_best_size_in_them() -> None:
    kept = frontier(BESIROGLU, 1e20)
    plan = make_plan().model_copy(update={"frontier": kept})
    assert [title for title, _, _ in plan_plots.choice_charts(plan)][1] == "Loss and the efficient frontier"
    axes = Figure().subplots()
    flops, best = np.array(kept.flops), np.array(kept.best)
    law_plots._frontier(axes, flops, (np.array(kept.low), best, np.array(kept.high)), flops < 1e20)
    dashed, solid = axes.lines
    assert (dashed.get_linestyle(), solid.get_linestyle()) == ("--", "-")
    assert np.column_stack(dashed.get_data()).tolist() == np.column_stack([flops, best]).tolist()
    assert solid.get_xdata().max() < 1e20
    shown = texts(law_plots.plan_contour_chart(kept, 3e8, 5e10))
    assert {"the plan", "best size", "compute 6·N·D, FLOPs", "parameters"} <= set(shown)
    losses = [float(text) for text in shown if re.fullmatch(r"\d\.\d+", text)]
    # Written in the contours: losses that the law has along its frontier.
    low, high = (BESIROGLU.loss(n, c / 6 / n) for c, n in ((flops[-1], best[-1]), (flops[0], best[0])))
    assert losses and all(low <= loss <= high for loss in losses)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_s_shares_are_drawn_where_its_own_precision_was_measured(precision: str) -> None:
    """Muon's products are in it, too: no other has to be there."""
    rates = tuple(rate for rate in MACHINE.matmul if rate.precision == precision)
    machine = MACHINE.model_copy(update={"matmul": rates})
    for asked in ("fp32", "bf16"):
        training = TRAINING.model_copy(update={"precision": asked, "optimizer": "muon"})
        drawn = plan_plots.shares_chart(SHAPE, BATCH, machine, training)
        assert ("muon" in texts(drawn)) if asked == precision else drawn == ""
