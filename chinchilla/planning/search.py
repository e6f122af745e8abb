"""What to train for a budget: candidates to probe where no law holds, the law's plan where one does, and the steps."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pydantic import ValidationError

from chinchilla.config.errors import UsageError
from chinchilla.config.frozen import Frozen
from chinchilla.config.machine import Machine, Precision
from chinchilla.config.plan import FAMILIES, LABELS, PACKED, Family, OptimizerKind, TaskName
from chinchilla.config.run import Limits, Model
from chinchilla.config.shape import ImageStem, Shape, Stem
from chinchilla.planning.bounds import Bound, answer_s, bounds, unfit
from chinchilla.planning.bounds import too_little as too_little
from chinchilla.planning.count import Batch, num_params, typical_batch
from chinchilla.planning.deadline import Deadline
from chinchilla.planning.latency import Request
from chinchilla.planning.laws import FLOPS_PER_PARAM_TOKEN
from chinchilla.planning.machine import step_time
from chinchilla.planning.room import Room

DIMS = (128, 192, 256, 320, 384, 512, 640, 768)
IMAGE_DIMS = (64, 96)
"""Narrower ones, where images are put in classes: convolutions do most of the work. With the fewest layers only."""

LAYERS = (2, 3, 4, 6, 8)
ASPECT = (60, 128)
"""Channels a layer of a stack: outside this a model is needlessly deep or flat."""

TYPICAL, TYPICAL_IMAGES = 5e6, 1.65e6
"""Parameters that do well with 1e14 FLOPs, and where images are put in classes: there 172 thousand did as well on
digits as 678 thousand with five times the FLOPs (docs/images.md)."""

FAR = 1.75
"""Factor on the rule of thumb's size beyond which a shape is not probed."""

MOST_EPOCHS = 40
"""Beyond this, repeats are worth little (Muennighoff 2023 measured up to about 60)."""

MOST_PASSES: dict[TaskName, float] = {"classify_table": 8, "recommend": 6, "classify_text": 3}
LEAST_SEEN = 10_000
"""Passes over the data after which new rows fared worse, in trials with the plan's settings (docs/tables.md,
docs/tasks.md); few rows are seen more often, until so many labels are."""

PROBE_BATCH_TOKENS = 4_096

PROMPT_TOKENS, ANSWER_TOKENS = 16, 32
"""A typical request for text: a few words, and a line of answer; `verbs.answer_probe` times the same."""


class Facts(Frozen):
    """What the planner needs to know of the data, in tokens of its tokenizer.

    `unique_tokens` counts the labelled tokens of one epoch. `mean_source_len` (0 without a source) and
    `mean_target_len` are of a batch's rows, and `max_len` is the longest of them; a translation's rows are packed with
    several pairs. `bytes_per_token` is of the labelled text; `padding` is the share of positions without a token.
    `beam_size` is how many answers a translation looks for side by side.

    Where examples are put in one of `num_classes`, a label stands for a token: `unique_tokens` are examples, and a row
    has `labels_per_row` of them. A `stem` takes what is no text.
    """

    task: TaskName
    vocab_size: int
    unique_tokens: int
    num_examples: int
    mean_source_len: float
    mean_target_len: float
    max_len: int
    bytes_per_token: float
    padding: float = 0.0
    beam_size: int = 4
    labels_per_row: float = 0.0
    num_classes: int = 0
    stem: Stem | None = None
    boxes: bool = False

    @property
    def family(self) -> Family:
        """Which stacks the model has."""
        return FAMILIES[self.task]

    @property
    def packed(self) -> bool:
        """Whether a row holds several examples."""
        return self.task in PACKED

    @property
    def labels(self) -> str:
        """What is counted, in a word."""
        return LABELS[self.task].many

    @property
    def positions_per_label(self) -> float:
        """Positions that the model works on for each label, of its longer side."""
        if self.labels_per_row:
            return self.mean_source_len / self.labels_per_row
        return max(self.mean_source_len, self.mean_target_len) / self.mean_target_len / (1 - self.padding)

    @property
    def sparsity(self) -> float:
        """Positions worked on for each label of an image: it has as little to say as one token. 1 elsewhere."""
        return self.positions_per_label if isinstance(self.stem, ImageStem) else 1.0

    def batch(self, tokens: float) -> Batch:
        """A typical batch of about `tokens` labelled tokens."""
        if self.labels_per_row:
            size = max(1, round(tokens / self.labels_per_row))
            labelled = max(1, round(size * self.labels_per_row))
            return Batch(size, round(self.mean_source_len), labelled=labelled, packed=self.packed)
        rows = typical_batch(tokens / (1 - self.padding), self.mean_source_len, self.mean_target_len)
        labelled = round(rows.loss_rows * (1 - self.padding))
        return replace(rows, labelled=labelled, packed=self.packed)

    @property
    def most_tokens(self) -> float:
        """Labelled tokens to see at most, however large the budget."""
        return max(LEAST_SEEN, MOST_PASSES.get(self.task, math.inf) * self.unique_tokens)

    @property
    def sorts_images(self) -> bool:
        """Whether images are put in classes, which small networks do well."""
        return isinstance(self.stem, ImageStem) and not self.boxes

    def typical_params(self, flops: float) -> float:
        """Parameters that do well with these data for a budget of so many FLOPs."""
        at_1e14 = TYPICAL_IMAGES if self.sorts_images else TYPICAL
        return typical_params(flops, self.sparsity, self.unique_tokens, at_1e14)

    @property
    def request(self) -> Request:
        """A typical answer: a mean source and its translation, a short prompt and a line more, or an example alone."""
        if self.labels_per_row:
            return Request(max(1, round(self.positions_per_label * (1 - self.padding))), 0)
        if self.task == "recommend":
            return Request(max(1, min(self.max_len - 1, round(self.unique_tokens / self.num_examples))), 1)
        if self.family == "decoder":
            new = min(ANSWER_TOKENS, self.max_len // 2)
            return Request(max(1, min(PROMPT_TOKENS, self.max_len - new)), max(1, new))
        new = min(self.max_len, max(1, round(self.unique_tokens / self.num_examples)))
        source = round(new * self.mean_source_len / self.mean_target_len)
        source = min(self.max_len, max(1, source))
        return Request(source, new, self.beam_size, min(2 * source + 10, self.max_len - 1))  # `tasks.translate.max_new`


def build(facts: Facts, fixed: Model, dim: int, encoder_layers: int, decoder_layers: int) -> Shape:
    """The project's shape of this width and depth for the data, with what the user fixed kept as it is.

    Heads have 64 channels from 192 channels on, 32 below; the feed-forward part is four times as wide as the stream
    (SwiGLU: 8/3, for as many parameters); LayerNorm, whose fused kernel makes it faster than RMSNorm on CPUs; GELU for
    images, which did better there than squared ReLU (docs/images.md); gated attention for text generation, which did
    better there than full (docs/training.md).
    """
    head_dim = 64 if dim >= 192 and dim % 64 == 0 else 32
    num_heads = fixed.num_heads or max(1, dim // head_dim)
    settings = (
        ({"activation": "gelu"} if isinstance(facts.stem, ImageStem) else {})
        | ({"attention": "gated"} if facts.task == "generate" else {})
        | fixed.model_dump(exclude_none=True)
        | {
            "dim": dim,
            "num_heads": num_heads,
            "num_kv_heads": fixed.num_kv_heads or num_heads,
            "head_dim": max(2, dim // num_heads // 2 * 2) if fixed.num_heads else head_dim,
            "num_encoder_layers": encoder_layers,
            "num_decoder_layers": decoder_layers,
            "vocab_size": facts.vocab_size,
            "max_len": max(fixed.max_len or 0, facts.max_len),  # packed rows may be longer than the texts
            "num_classes": facts.num_classes,
            "stem": facts.stem,
            "boxes": facts.boxes,
            "position": fixed.position or ("rotary" if facts.stem is None else "learned"),
            "norm": fixed.norm or "layer",
        }
    )
    wide = fixed.ffn_dim or (round(dim * 8 / 3 / 64) * 64 if fixed.activation == "swiglu" else 4 * dim)
    return Shape(**settings | {"ffn_dim": wide})


def candidates(
    facts: Facts,
    machine: Machine,
    limits: Limits,
    fixed: Model,
    time_s: float,
    room: Room,
    deadline: Deadline | None = None,
) -> list[Shape]:
    """The shapes worth probing for `time_s` seconds of training, smallest first.

    Worth probing: within `limits` and the `deadline` of fixed steps, and at the speed that the roofline expects seeing
    at least one token a parameter, or one epoch. Where no shape does, the nearest one. `room` is the memory there is.

    Raises:
        UsageError: fixed settings that contradict each other or the task.
        BudgetError: no shape fits the limits; names the nearest limit that can be met, and the shape that meets it.
    """
    ladder = sorted(_ladder(facts, fixed), key=num_params)
    held_to = bounds(facts.request, machine, limits, room, deadline)
    fitting = [shape for shape in ladder if all(bound.holds(shape) for bound in held_to)]
    if not fitting:
        raise unfit(ladder, held_to)
    distances = {}
    for shape in fitting:
        tokens = expected_tokens(shape, facts, machine, time_s, room.precision, room.optimizer)
        distances[shape] = max(0.0, math.log(min(facts.unique_tokens, num_params(shape)) / tokens))
    nearest = min(distances.values())
    return [shape for shape in fitting if distances[shape] <= nearest]


def expected_tokens(
    shape: Shape, facts: Facts, machine: Machine, time_s: float, precision: Precision, optimizer: OptimizerKind
) -> float:
    """Labelled tokens that `time_s` seconds are expected to get through, by the roofline."""
    batch = facts.batch(PROBE_BATCH_TOKENS)
    return batch.loss_rows * time_s / step_time(shape, batch, machine, precision, optimizer).total_s


def typical_params(flops: float, sparsity: float = 1.0, unique: float = math.inf, at_1e14: float = TYPICAL) -> float:
    """Parameters that do well with a budget far below the laws' range: `at_1e14` with 1e14 FLOPs, growing as C^0.4.

    A rule of thumb from runs of minutes on 2 cores (docs/planning.md), where the published laws would say a seventh;
    it meets them near 1e19. Probe runs decide among the shapes around it. Where a label takes `sparsity` positions,
    C is what the labels would have taken by themselves: parameters are weighed against examples of what to learn.
    A budget that would show `unique` labels more than `MOST_EPOCHS` times is worth as many parameters as one that
    does not: what few labels teach, a larger model would only learn by heart.
    """
    worth = (MOST_EPOCHS * unique * FLOPS_PER_PARAM_TOKEN * at_1e14 / 1e14**0.4) ** (1 / 0.6)
    return at_1e14 * (min(flops / sparsity, worth) / 1e14) ** 0.4


def near(shapes: Sequence[Shape], wanted: float, most: int) -> list[Shape]:
    """The `most` shapes nearest to `wanted` parameters and to steps of 1.3 below and above it; smallest first.

    None is further than `FAR` from it, where another is there: probes are too short to judge what is unlike.
    """
    distance = {shape: abs(math.log(num_params(shape) / wanted)) for shape in shapes}
    within = max(math.log(FAR), min(distance.values(), default=0.0))
    chosen: list[Shape] = []
    for power in (0, -1, 1, -2, 2)[:most]:
        left = [shape for shape in shapes if shape not in chosen and distance[shape] <= within]
        if left:
            chosen.append(min(left, key=lambda shape: abs(math.log(num_params(shape) / (wanted * 1.3**power)))))
    return sorted(chosen, key=num_params)


def smallest(facts: Facts, fixed: Model, held_to: Sequence[Bound]) -> Shape:
    """A shape that no plan goes below.

    Raises:
        UsageError: fixed settings that contradict each other or the task.
        BudgetError: even it breaks a bound.
    """
    ladder = list(_ladder(facts, fixed))
    least = of_depth(fixed.dim or widths(facts)[0], 1, facts, fixed)
    if not all(bound.holds(least) for bound in held_to):
        raise unfit(ladder, held_to)
    return least


def _ladder(facts: Facts, fixed: Model) -> Iterator[Shape]:
    """Every width and depth that the fixed settings leave open."""
    if facts.family == "decoder" and fixed.num_encoder_layers:
        raise UsageError(f"model.num_encoder_layers: `{facts.task}` has a decoder only; leave it out")
    if facts.family == "encoder" and fixed.num_decoder_layers:
        raise UsageError(f"model.num_decoder_layers: `{facts.task}` has an encoder only; leave it out")
    free = not (fixed.dim or fixed.num_encoder_layers or fixed.num_decoder_layers)
    for dim in [fixed.dim] if fixed.dim else widths(facts):
        for encoder, decoder in _depths(facts.family, fixed):
            layers = max(encoder, decoder)
            narrow = dim in IMAGE_DIMS and layers == LAYERS[0]
            if not free or narrow or ASPECT[0] <= dim / layers <= ASPECT[1]:
                yield _checked(facts, fixed, dim, encoder, decoder)


def widths(facts: Facts) -> tuple[int, ...]:
    """Those that are tried for the data, narrowest first."""
    return (*IMAGE_DIMS, *DIMS) if facts.sorts_images else DIMS


def _depths(family: Family, fixed: Model) -> list[tuple[int, int]]:
    """Numbers of encoder and decoder layers to try; equal where both are open."""
    return list(dict.fromkeys(depth(family, fixed, layers) for layers in LAYERS))


def depth(family: Family, fixed: Model, layers: int) -> tuple[int, int]:
    """Encoder and decoder layers of a model of so many a stack, with what the user fixed kept."""
    encoder, decoder = fixed.num_encoder_layers or layers, fixed.num_decoder_layers or layers
    return (0 if family == "decoder" else encoder), (0 if family == "encoder" else decoder)


def of_depth(dim: int, layers: int, facts: Facts, fixed: Model) -> Shape:
    """The shape of this width with so many layers a stack, with what the user fixed kept.

    Raises:
        UsageError: fixed settings that contradict each other or the task.
    """
    return _checked(facts, fixed, dim, *depth(facts.family, fixed, layers))


def _checked(facts: Facts, fixed: Model, dim: int, encoder: int, decoder: int) -> Shape:
    try:
        return build(facts, fixed, dim, encoder, decoder)
    except ValidationError as error:
        raise UsageError(f"[model] contradicts itself: {error.errors()[0]['msg']}") from None


def left_out(facts: Facts, machine: Machine, limits: Limits, fixed: Model) -> str:
    """How many of the shapes `limits.latency` rules out, in words; "" where it is not set."""
    if limits.latency is None:
        return ""
    ladder = list(_ladder(facts, fixed))
    slow = sum(answer_s(shape, facts.request, machine) > limits.latency for shape in ladder)
    return f"limits.latency {limits.latency:.3g} s rules out {slow} of {len(ladder)} shapes"
