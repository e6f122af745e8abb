"""What the planner decided, and what it predicts."""

from typing import Literal, NamedTuple

from pydantic import Field

from chinchilla.config.considered import Considered, Frontier
from chinchilla.config.correction import Correction
from chinchilla.config.estimate import Estimate
from chinchilla.config.frozen import Frozen
from chinchilla.config.machine import Machine, Precision
from chinchilla.config.shape import Shape

OptimizerKind = Literal["adamw", "muon"]
ScheduleKind = Literal["cosine", "wsd"]
TaskName = Literal[
    "translate",
    "summarise",
    "generate",
    "dialogue",
    "classify_text",
    "classify_image",
    "classify_table",
    "detect",
    "recommend",
]
Family = Literal["encoder-decoder", "decoder", "encoder"]
FAMILIES: dict[TaskName, Family] = {
    "translate": "encoder-decoder",
    "summarise": "encoder-decoder",
    "generate": "decoder",
    "dialogue": "decoder",
    "classify_text": "encoder",
    "classify_image": "encoder",
    "classify_table": "encoder",
    "detect": "encoder",
    "recommend": "decoder",
}
"""Which stacks a task's model has."""

PACKED: frozenset[TaskName] = frozenset(("translate", "summarise", "dialogue", "classify_text", "recommend"))
"""Tasks whose rows hold several examples, which must not see each other."""

STEMMED: frozenset[TaskName] = frozenset(("classify_image", "classify_table", "detect"))
"""Tasks whose rows are as long as an input has columns or patches."""


class Label(NamedTuple):
    """What a task plans, counts and averages over, in words."""

    one: str
    many: str

    @property
    def a(self) -> str:
        """One, with its article."""
        return f"{'an' if self.one[0] in 'aeiou' else 'a'} {self.one}"


TOKEN, EXAMPLE = Label("token", "tokens"), Label("example", "examples")
LABELS: dict[TaskName, Label] = {
    "translate": TOKEN,
    "summarise": TOKEN,
    "generate": TOKEN,
    "dialogue": TOKEN,
    "classify_text": EXAMPLE,
    "classify_image": EXAMPLE,
    "classify_table": EXAMPLE,
    "detect": Label("box", "boxes"),
    "recommend": Label("item", "items"),
}

TARGETS: dict[TaskName, str] = {
    "translate": "data.target",
    "summarise": "data.target",
    "classify_text": "data.label",
    "classify_table": "data.label",
}
"""The setting that names the column to be told, of tasks that have one."""


class Training(Frozen):
    """Every setting the trainer obeys; nothing is left open.

    A step sees about `batch_tokens` real (non-padding) tokens, in `accumulation` micro-batches. Learning rates
    are peak rates. `ema_decay`, `dropout`, `drop_path` and `clip_norm` are off at 0.
    """

    steps: int
    batch_tokens: int
    accumulation: int
    optimizer: OptimizerKind
    learning_rate: float
    embedding_learning_rate: float
    weight_decay: float
    schedule: ScheduleKind
    warmup_steps: int
    decay_fraction: float
    clip_norm: float
    label_smoothing: float
    dropout: float
    drop_path: float = Field(default=0.0, description="not kept by the first plans")
    class_weights: tuple[float, ...] = Field(default=(), description="of each class in order; empty: 1 each")
    focal_gamma: float = Field(default=0.0, description="of focal loss; 0 is cross-entropy")
    ema_decay: float
    reconstruct_weight: float
    mask_rate: float
    precision: Precision
    compile: bool
    recompute: bool = False
    threads: int
    eval_every: int
    checkpoint_every: int
    keep_checkpoints: int
    log_every: int
    seed: int


class Decision(Frozen):
    """One line of the plan's table: a value and why it was chosen."""

    name: str
    value: str
    reason: str


class Probe(Frozen):
    """One short probe run: a candidate shape trained for `time_s` seconds."""

    shape: Shape
    precision: Precision
    compile: bool
    num_params: int
    tokens: int
    time_s: float
    step_time_s: float
    loss: float
    predicted_loss: float | None = None


class Rows(Frozen):
    """The rows that the plan's batches are made of, and what a typical answer is reckoned from.

    Lengths are positions: means of a source's rows (0 without one) and a target's, and the longest of both. `padding`
    is the share of positions without a token; `beam_size` answers are looked for side by side. `labels_per_row`
    is 0 where every position of the output side may carry a label, else how many do: one for each example.
    """

    num_examples: int
    mean_source_len: float
    mean_target_len: float
    max_len: int
    padding: float = 0.0
    beam_size: int = 4
    labels_per_row: float = 0.0


class Pauses(Frozen):
    """Seconds that a validation and a checkpoint take from the steps."""

    eval_s: float = 0.0
    checkpoint_s: float = 0.0


class Plan(Frozen):
    """A complete plan: the model, its training, predictions with their source, and a reason for each choice.

    `predicted` holds, where it applies: `step_time_s`, `train_time_s`, `tokens`, `loss` (validation,
    nats a token), `memory_bytes` (peak resident), `size_bytes` (weights on disk), `flops`, `latency_s` (one typical
    answer); `money`, `energy_j` and `co2_g` of planning and training, where price, power and emissions are known.
    """

    task: TaskName
    shape: Shape
    training: Training
    num_params: int
    flops_per_token: float
    unique_tokens: int
    tokens_per_step: float
    bytes_per_token: float
    machine: Machine
    predicted: dict[str, Estimate]
    decisions: tuple[Decision, ...]
    probes: tuple[Probe, ...] = ()
    considered: tuple[Considered, ...] = Field(default=(), description="by size, the chosen shape among them")
    frontier: Frontier | None = Field(default=None, description="of the law that chose, where one did")
    rows: Rows | None = Field(default=None, description="not kept by the first plans")
    corrections: dict[str, Correction] = Field(
        default={}, description="put on `predicted` by `chinchilla audit --save`"
    )
    pauses: Pauses = Field(default=Pauses(), description="not kept by the first plans: made anew, they leave no room")
    planning_time_s: float = 0.0
    budget_time_s: float | None = Field(default=None, description="the time that steps are to fill, planning included")
    budget_flops: float | None = None
    most_steps: int | None = Field(default=None, description="more would show the data too often; none: as many as fit")

    @property
    def is_sated(self) -> bool:
        """Whether the data, seen as often as it is worth seeing, ends the run before the budget does."""
        return self.training.steps == self.most_steps

    @property
    def fixed(self) -> frozenset[str]:
        """Predictions that the budget settles but for little: the clock, or else what is seen."""
        open_end = self.budget_time_s is None or self.is_sated
        return frozenset(("tokens", "flops") if open_end else ("train_time_s", "money"))
