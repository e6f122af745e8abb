"""How a plan was reckoned: what it was chosen among, the roofline with its operators, what a step's time goes to.

Each chart is one `<svg>` element, as those of `curves` are, or "" where there is nothing to draw.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from chinchilla.config.considered import Considered
from chinchilla.config.machine import Machine, Precision
from chinchilla.config.plan import Plan, Training
from chinchilla.config.shape import Shape
from chinchilla.planning.count import Batch, Product, products, typical_batch
from chinchilla.planning.layout import Layouts
from chinchilla.planning.machine import ATTENTION_SHARE, matmul_rate, step_time
from chinchilla.planning.operators import BYTES
from chinchilla.planning.rows import facts_of
from chinchilla.reporting.canvas import FIRST, INK, MUTED, SECOND, drawing, figure, svg
from chinchilla.reporting.law_plots import plan_contour_chart
from chinchilla.reporting.layout_plots import layout_chart
from chinchilla.reporting.memory_plots import memory_chart, moments
from chinchilla.reporting.scales import log_axis, power
from chinchilla.reporting.tables import shape_name

PASSES = 3
"""A product's forward pass, and the two products of its backward pass."""

ROW_IN = 0.21
ATTEND = ("scores", "values")

EVEN = 3.0
"""Up to this factor between the largest and the smallest, an axis of costs is linear."""

_BYTES = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}
_SECONDS = {"h": 3600.0, "min": 60.0, "s": 1.0, "ms": 1e-3}


@dataclass(frozen=True)
class Operator:
    """One kind of matrix product in a whole step, forward and backward: FLOPs, bytes in and out, and seconds."""

    name: str
    flops: float
    size_bytes: float
    time_s: float

    @property
    def attends(self) -> bool:
        """Whether these are attention's products of activations with each other."""
        return self.name.endswith(ATTEND[-1])

    @property
    def intensity(self) -> float:
        """FLOPs for each byte that it reads or writes."""
        return self.flops / self.size_bytes

    @property
    def flops_per_s(self) -> float:
        """The rate of the measured products nearest to these."""
        return self.flops / self.time_s


def plan_batch(plan: Plan) -> Batch:
    """A typical micro-batch of the plan.

    Of a plan that did not keep its rows: in full rows of the model's longest. Packed pairs have one side a little
    shorter and a few per cent of padding, which take from each other.
    """
    shape, tokens = plan.shape, plan.training.batch_tokens / plan.training.accumulation
    if (facts := facts_of(plan)) is not None:
        return facts.batch(tokens)
    source_len = shape.max_len if shape.num_encoder_layers else 0
    target_len = shape.max_len if shape.num_decoder_layers else 0
    found = typical_batch(tokens, source_len, target_len)
    return Batch(found.size, source_len, target_len, packed=plan.task == "translate")


def plan_charts(plan: Plan, batch: Batch, found: Layouts | None = None) -> list[tuple[str, str, str]]:
    """Title, chart and caption of all that there is to a plan, for micro-batches like `batch`."""
    return choice_charts(plan) + reckoned_charts(plan, batch, found)


def reckoned_charts(plan: Plan, batch: Batch, found: Layouts | None = None) -> list[tuple[str, str, str]]:
    """Title, chart and caption of what a plan was reckoned from, for micro-batches like `batch`."""
    case, rows = (plan.shape, batch, plan.machine, plan.training), batch.target_len or batch.source_len
    roofline = (
        f"Line: measured bandwidth and peak, {plan.training.precision}; grey: measured products, which run from the "
        "cache; blue: the plan's, at the rate of the grey ones nearest in size (attention: at half of it)."
    )
    time_told = (
        "As reckoned before probes and past runs correct it. Blue: matrix products; traffic: all else that is read."
    )
    memory_told = f"Tensors as counted, micro-batches of {batch.size} × {rows} positions; the process holds more."
    drawn = [
        ("Roofline", roofline_chart(*case), roofline),
        ("What a step's time goes to", shares_chart(*case), time_told),
        (
            "Memory over a step",
            memory_chart(moments(plan.shape, batch, plan.training, plan.machine.device)),
            memory_told,
        ),
    ]
    if found is not None:
        told = (
            "Orange: recommended; blue: no other is better in all; grey: the fastest of their kind; bars: p10 to p90."
        )
        drawn.append(("Layouts of a step", layout_chart(found), told))
    return [each for each in drawn if each[1]]


def choice_charts(plan: Plan) -> list[tuple[str, str, str]]:
    """Title, chart and caption of what a plan was chosen among, and by which law."""
    front = (
        "Orange: the plan; blue: on the front with it, beaten by none in loss, size, answer and memory at once; grey: "
        "beaten. Losses rest on one comparison: what divides them is surer than their level."
    )
    drawn = [("Plans for this budget", front_chart(plan.considered, plan.shape), front)]
    if plan.frontier is not None:
        tokens = plan.predicted["tokens"].p50
        contours = (
            f"Contours: loss by the {plan.frontier.name} law, repeats not counted; line: the best size for a compute, "
            "dashed outside the runs it was fitted to; band: p10 to p90; diamond: the plan."
        )
        chart = plan_contour_chart(plan.frontier, plan.num_params, tokens)
        drawn.append(("Loss and the efficient frontier", chart, contours))
    return [each for each in drawn if each[1]]


def front_chart(considered: Sequence[Considered], chosen: Shape) -> str:
    """Loss over size, time of an answer and peak memory of the shapes weighed, the front joined; "" of one alone."""
    if len(considered) < 2:
        return ""
    with drawing("front"):
        drawn, panels = figure(columns=3, height_in=2.6, sharey=True)
        costs = (
            ("size", [float(each.size_bytes) for each in considered], _BYTES),
            ("answer", [each.latency_s.p50 for each in considered], _SECONDS),
            ("peak memory", [each.memory_bytes.p50 for each in considered], _BYTES),
        )
        for axes, (name, values, units) in zip(panels, costs, strict=True):
            unit = next((unit for unit in units if max(values) >= units[unit]), min(units, key=units.__getitem__))
            scaled = [value / units[unit] for value in values]
            _weighed(axes, considered, scaled, chosen)
            axes.set_xlabel(f"{name}, {unit}")
        panels[0].set_ylabel(f"loss, {considered[0].loss.unit.replace('/', ' a ')}")
        _name_front(panels[-1], considered, scaled)
        return svg(drawn, "front", "Predicted loss over size, time of an answer and memory of the plans considered")


def _weighed(axes: Axes, considered: Sequence[Considered], values: Sequence[float], chosen: Shape) -> None:
    axes.set_xscale("log")
    line = sorted((value, each.loss.p50) for each, value in zip(considered, values, strict=True) if each.on_front)
    axes.plot(*zip(*line, strict=True), color=FIRST, linewidth=0.9, alpha=0.6)
    for each, value in zip(considered, values, strict=True):
        color = SECOND if each.shape == chosen else FIRST if each.on_front else MUTED
        axes.plot(value, each.loss.p50, color=color, marker="o", markersize=4.5, linestyle="none")
    axes.margins(x=0.12, y=0.1)
    if max(values) > EVEN * min(values):
        log_axis(axes, "x", lambda value: f"{value:g}", 3)
    else:
        axes.set_xscale("linear")
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _name_front(axes: Axes, considered: Sequence[Considered], values: Sequence[float]) -> None:
    """Name the points on the front right of the axes."""
    points = zip(considered, values, strict=True)
    _name_beside(axes, [(shape_name(each.shape), value, each.loss.p50) for each, value in points if each.on_front])


def operators(shape: Shape, batch: Batch, machine: Machine, training: Training) -> list[Operator]:
    """The kinds of products of a step at the rates of measured products, longest first."""
    kinds: dict[str, list[Product]] = {}
    for product in products(shape, batch):
        if product.flops:
            kinds.setdefault(_kind(product.name), []).append(product)
    found = [_operator(name, same, machine, training) for name, same in kinds.items()]
    return sorted(found, key=lambda operator: -operator.time_s)


def _kind(name: str) -> str:
    """`decoder.layers.0.attention.qkv` is "attention qkv"; scores and values go together."""
    last = name.split(".")[-2:]
    if last[-1] in ATTEND:
        last[-1] = ", ".join(ATTEND)
    return " ".join(last)


def _operator(name: str, same: list[Product], machine: Machine, training: Training) -> Operator:
    times = PASSES * training.accumulation
    precision, share = training.precision, ATTENTION_SHARE if name.endswith(ATTEND[-1]) else 1.0
    rates = [share * matmul_rate(machine, p.m * p.count, p.k, p.n, precision) for p in same]
    return Operator(
        name=name,
        flops=times * sum(p.flops for p in same),
        size_bytes=times * sum(_traffic(p.m, p.k, p.n, precision) * p.count for p in same),
        time_s=times * sum(p.flops / rate for p, rate in zip(same, rates, strict=True)),
    )


def _traffic(m: int, k: int, n: int, precision: Precision) -> int:
    """Bytes of a product's two inputs and its output, each once."""
    return BYTES[precision] * (m * k + k * n + m * n)


def shares(shape: Shape, batch: Batch, machine: Machine, training: Training) -> list[tuple[str, float]]:
    """What a step's time goes to, each with its share of the whole: products by kind, then what is none.

    The whole and its five parts are `machine.step_time`'s; products divide theirs as the measured rates have it.
    """
    whole = step_time(shape, batch, machine, training.precision, training.optimizer, training.accumulation)
    found = operators(shape, batch, machine, training)
    rated_s = {attend: sum(each.time_s for each in found if each.attends is attend) for attend in (False, True)}
    parts_s = {False: whole.products_s, True: whole.attention_s}
    times = [(each.name, each.time_s / rated_s[each.attends] * parts_s[each.attends]) for each in found]
    times += [("traffic", whole.traffic_s), ("calls", whole.overhead_s), (training.optimizer, whole.optimizer_s)]
    return [(name, time_s / whole.total_s) for name, time_s in times]


def roofline_chart(shape: Shape, batch: Batch, machine: Machine, training: Training) -> str:
    """FLOP/s over FLOPs a byte: the machine's roof, its measured products, and the plan's products by kind.

    "" where the machine has no measured products in the plan's precision.
    """
    if training.precision not in {rate.precision for rate in machine.matmul}:
        return ""
    with drawing("roofline"):
        drawn, (axes,) = figure(height_in=3)
        _roof(axes, machine, training.precision, operators(shape, batch, machine, training))
        return svg(drawn, "roofline", "Roofline of the machine with the plan's operators")


def _roof(axes: Axes, machine: Machine, precision: Precision, found: Sequence[Operator]) -> None:
    peak, knee = machine.flops_per_s(precision), machine.flops_per_s(precision) / machine.bytes_per_s
    measured = [rate for rate in machine.matmul if rate.precision == precision]
    seen = [2 * r.m * r.k * r.n / _traffic(r.m, r.k, r.n, precision) for r in measured]
    ends = [*seen, *(operator.intensity for operator in found), knee]
    low, high = min(ends) / 1.5, max(ends) * 1.5
    rates = [rate.flops_per_s for rate in measured]
    slowest = min(*rates, *(operator.flops_per_s for operator in found))
    axes.plot([low, knee, high], [low * machine.bytes_per_s, peak, peak], color=INK, linewidth=1.2)
    axes.plot(seen, rates, color=MUTED, marker="o", markersize=3, alpha=0.6, linestyle="none")
    axes.set(xlabel="FLOPs a byte", ylabel="FLOP/s", xlim=(low, high), ylim=(slowest / 1.5, peak * 1.5))
    log_axis(axes, "x", lambda value: f"{value:g}", 6)
    log_axis(axes, "y", power, 5)
    points = [(operator.intensity, operator.flops_per_s) for operator in found]
    axes.plot(*zip(*points, strict=True), color=FIRST, marker="o", markersize=4.5, linestyle="none")
    _name_beside(axes, [(operator.name, *point) for operator, point in zip(found, points, strict=True)])


def _name_beside(axes: Axes, named: Sequence[tuple[str, float, float]]) -> None:
    """Write names right of the axes, joined to their points, in the points' order and none over another."""
    height = -math.inf
    places = []
    for name, x, y in sorted(named, key=lambda item: item[2]):
        (_, at) = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        height = max(float(at), height + 0.075)
        places.append((name, x, y, height))
    over = max(0.0, height - 1)
    for name, x, y, at in places:
        line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            name, (x, y), (1.03, at - over), textcoords="axes fraction", va="center", fontsize=8, arrowprops=line
        )


def shares_chart(shape: Shape, batch: Batch, machine: Machine, training: Training) -> str:
    """What a step's time goes to, in per cent; "" where its precision was not measured."""
    if training.precision not in {rate.precision for rate in machine.matmul}:
        return ""
    told = shares(shape, batch, machine, training)
    with drawing("shares"):
        drawn, (axes,) = figure(height_in=0.5 + ROW_IN * len(told))
        _shares(axes, told)
        return svg(drawn, "shares", "What the time of a step goes to, as the roofline has it")


def _shares(axes: Axes, told: Sequence[tuple[str, float]]) -> None:
    values = [100 * share for _, share in told]
    colors = [FIRST] * (len(told) - 3) + [MUTED] * 3
    axes.barh(range(len(told)), values, color=colors, height=0.66)
    axes.set_yticks(range(len(told)), [name for name, _ in told], color=INK)
    axes.set_ylim(len(told) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("% of a step's time")
    for y, value in enumerate(values):
        text = f"{value:.0f}" if value >= 1 else f"{value:.1f}"
        axes.annotate(text, (value, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.margins(x=0.1)
