"""The one configuration tree: TOML file, Python object and documentation at once."""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from chinchilla.config.adapter import Adapter
from chinchilla.config.attack import Attack
from chinchilla.config.costs import Costs
from chinchilla.config.frozen import Frozen
from chinchilla.config.machine import Precision
from chinchilla.config.noise import Noise
from chinchilla.config.plan import OptimizerKind, ScheduleKind, TaskName
from chinchilla.config.shape import Activation, AttentionKind, NormKind, Patch, PositionKind
from chinchilla.config.units import Count, EnergyJ, Flops, LatencyS, Number, SizeBytes, TimeS

Fraction = Annotated[float, Field(ge=0, lt=1)]
Files = Path | tuple[Path, ...]
DataFormat = Literal["tsv", "csv", "jsonl", "parquet", "text", "folder", "idx", "cifar", "medmnist", "coco", "voc"]


class Data(Frozen):
    """Where the examples are. Paths in a file are relative to that file.

    `train`, `valid` and `test` each name one file or folder, or two that belong together: parallel texts (source,
    target), images and their labels (idx), annotations and the folder of their images (COCO, VOC).
    `valid` and `test` are cut from `train` when absent: seeded, by group, never by line.
    """

    train: Files = Field(description="a file or folder, or two that belong together")
    valid: Files | None = None
    test: Files | None = None
    format: DataFormat | None = Field(None, description="by the file's ending when absent")
    source: str = Field("source", description="column of the text to translate or summarise (JSONL, Parquet)")
    target: str = Field("target", description="column of its translation or summary (JSONL, Parquet)")
    text: str = Field("text", description="column of the text (CSV, JSONL, Parquet)")
    label: str = Field("label", description="column of the class (CSV, JSONL, Parquet)")
    positive: str | None = Field(None, description="the class that scores are for, where there are two: the rarer one")
    messages: str = Field("messages", description="column of a conversation's messages, each a role and a content")
    user: str = Field("user", description="column naming who (recommend)")
    item: str = Field("item", description="column naming what (recommend)")
    time: str = Field("time", description="column saying when (recommend); a number or a date")
    ignore: tuple[str, ...] = Field((), description="columns of a table to leave out")
    group: str | None = Field(
        None,
        description="column naming the document a row belongs to, for splitting; absent: group, of texts and images",
    )
    invalid: Literal["refuse", "skip"] = Field(
        "refuse",
        description="a malformed row: stop and name it, or leave it out and count it (at most a tenth of the rows)",
    )

    @property
    def group_name(self) -> str:
        """The column of groups, of data that may or may not have one."""
        return self.group or "group"


class Images(Frozen):
    """What images are brought to and cut into, and how training varies them.

    Each training image is moved, turned and scaled at random. It is never mirrored, recoloured or mixed unless asked:
    a mirrored 3 is no 3.
    """

    size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="pixels a side, or height and width; the images' own where all are alike and small"
    )
    patch: Patch | None = Field(None, description="pixels a side of a patch, one position of the model")
    shift: Fraction = Field(0.1, description="share of a side that an image is moved by, at most")
    rotate: Annotated[float, Field(ge=0, le=180)] = Field(10.0, description="degrees it is turned by, at most")
    zoom: Fraction = Field(0.1, description="share it is scaled by, at most")
    crop: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="least share of an image's area that a crop keeps, anywhere in it; 1 is off"
    )
    flip: bool = Field(False, description="mirror every other image, left to right")
    colour: Fraction = Field(0.0, description="share that brightness, contrast and saturation change by, at most")
    randaugment: NonNegativeInt = Field(0, description="operations of RandAugment an image")
    mix: Literal["mixup", "cutmix"] | None = Field(None, description="mix every image with another")

    def misplaced(self, task: TaskName) -> str | None:
        """What is asked for that the task has no use for, and the mend; None where all is well."""
        if task == "classify_image":
            return None
        used = {"size", "patch", "flip"} if task == "detect" else set()
        has = "brings images to a size, mirrors them and nothing else" if used else "has no images"
        asked = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        wrong = next((name for name in asked if name not in used), None)
        return None if wrong is None else f"images.{wrong}: {task} {has}; leave it out"


class Tokenizer(Frozen):
    """The tokenizer to train on the training data, or a ready `tokenizer.json`."""

    kind: Literal["bpe", "unigram"] = "bpe"
    vocab_size: Annotated[int, Field(ge=300, le=200_000)] | None = None
    file: Path | None = None


LONGEST_S = 100 * 365.25 * 86_400
"""A century: who asks for more has slipped in the unit."""

MOST_FLOPS = 1e30
"""A thousand times and more of what the largest known training runs took."""


def _sane(most: float, told: str) -> AfterValidator:
    def check(value: float) -> float:
        if value > most:
            raise ValueError(f"that is {told}; is the unit right?")
        return value

    return AfterValidator(check)


class Budget(Frozen):
    """What may be spent: exactly one of wall-clock time, training FLOPs, money or energy.

    Money is in whatever unit the price is in. Money and energy become time by price and power: `[machine]`, or the
    cluster file's node.
    """

    time: Annotated[TimeS, Field(gt=0), _sane(LONGEST_S, "more than a century")] | None = Field(
        None, description='like "10m", "1h", 90 (seconds)'
    )
    flops: (
        Annotated[Flops, Field(gt=0), _sane(MOST_FLOPS, "1,000 times more than any model was trained with")] | None
    ) = Field(None, description='like "1e15", "200T"')
    money: Annotated[Number, Field(gt=0)] | None = Field(None, description="in the unit of the price, like 2.5")
    energy: Annotated[EnergyJ, Field(gt=0)] | None = Field(None, description='like "2kWh", "500kJ", 3.6e6 (joules)')

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.time, self.flops, self.money, self.energy)) != 1:
            raise ValueError(
                'give exactly one of time (like "10m"), flops (like "1e15"), money (like 2.5) or energy (like "2kWh")'
            )
        return self


class Limits(Frozen):
    """What the trained model must fit."""

    size: Annotated[SizeBytes, Field(gt=0)] | None = Field(None, description="weights on disk in fp32")
    memory: Annotated[SizeBytes, Field(gt=0)] | None = Field(None, description="peak memory of training")
    latency: Annotated[LatencyS, Field(gt=0)] | None = Field(
        None, description='time of one answer of typical length (p50), nothing else asked: like "50ms"'
    )
    serve_memory: Annotated[SizeBytes, Field(gt=0)] | None = Field(
        None, description="peak memory of one such answer, beside the process: weights in fp32, caches, workspace"
    )


class Here(Frozen):
    """What this machine costs and draws. Absent, the only node of the cluster file says it."""

    price_per_hour: Annotated[Number, Field(ge=0)] | None = Field(
        None, description="in any currency: the unit of money"
    )
    watts: Annotated[Number, Field(gt=0)] | None = Field(None, description="power drawn at full load")
    grams_per_kwh: Annotated[Number, Field(ge=0)] | None = Field(None, description="CO2 of the electricity")


class Machines(Frozen):
    """The machines to plan for; absent, this one."""

    file: Path | None = Field(None, description="a cluster.toml: nodes and links")


class Model(Frozen):
    """Parts of the shape to fix; what is left out the plan decides."""

    start: Path | None = Field(
        None, description="a run folder or model folder to start from: its shape, its tokenizer, and its weights"
    )
    dim: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    num_kv_heads: PositiveInt | None = None
    ffn_dim: PositiveInt | None = None
    num_encoder_layers: PositiveInt | None = None
    num_decoder_layers: PositiveInt | None = None
    max_len: PositiveInt | None = None
    attention: AttentionKind | None = None
    block_len: PositiveInt | None = None
    position: PositionKind | None = None
    norm: NormKind | None = None
    activation: Activation | None = None
    qk_norm: bool | None = None
    tied_embeddings: bool | None = None


def _weights(value: object) -> object:
    """Refuse what is no set of weights, in one sentence."""
    numbers = list(value.values()) if isinstance(value, dict) else []
    if value == "balanced" or (numbers and all(_counts(number) for number in numbers)):
        return value
    raise ValueError('write "balanced", or a table of numbers above 0 by class, like { spam = 5 }')


def _counts(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and 0 < number < math.inf


ClassWeights = Annotated[Literal["balanced"] | dict[str, float], BeforeValidator(_weights)]


class Train(Frozen):
    """Training settings to fix; what is left out the plan decides, and says why."""

    optimizer: OptimizerKind | None = None
    learning_rate: PositiveFloat | None = None
    weight_decay: NonNegativeFloat | None = None
    schedule: ScheduleKind | None = None
    warmup_steps: NonNegativeInt | None = None
    steps: PositiveInt | None = None
    batch_tokens: Annotated[Count, Field(gt=0)] | None = None
    accumulation: PositiveInt | None = None
    clip_norm: NonNegativeFloat | None = None
    label_smoothing: Fraction | None = None
    class_weights: ClassWeights | None = Field(
        None, description='what a class\'s examples count for: "balanced", or a table like { spam = 5 }'
    )
    focal_gamma: NonNegativeFloat | None = Field(None, description="focal loss's exponent: 2 is usual; 0 is off")
    dropout: Fraction | None = None
    drop_path: Fraction | None = Field(None, description="how often the last block's branches are dropped; 0 is off")
    ema_decay: Fraction | None = None
    reconstruct_weight: NonNegativeFloat = Field(0.0, description="weight of feature reconstruction; 0 is off")
    mask_rate: Fraction = Field(0.15, description="share of inputs masked when reconstruction is on")
    precision: Precision | None = None
    compile: bool | None = None
    recompute: bool | None = None
    threads: PositiveInt | None = None
    eval_every: PositiveInt | None = None
    checkpoint_every: PositiveInt | None = None
    keep_checkpoints: PositiveInt = 2
    probes: bool = Field(True, description="let short probe runs choose the shape where no law holds")
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()

    @property
    def distorting(self) -> str | None:
        """The setting by which a classifier's chances come to be others than the data's, where there is one."""
        names = ("class_weights", "focal_gamma", "label_smoothing")
        return next((f"train.{name}" for name in names if getattr(self, name)), None)

    @model_validator(mode="after")
    def _one_right_answer(self) -> Self:
        if self.focal_gamma and self.label_smoothing:
            raise ValueError("focal_gamma: focal loss is of one right answer; leave out it or label_smoothing")
        return self


class Evaluate(Frozen):
    """How answers are searched for when a model is scored."""

    beam_size: PositiveInt = 4
    max_examples: PositiveInt | None = Field(None, description="score only so many test examples, evenly chosen")


class Run(Frozen):
    """Everything a user says. A task, data and a budget make a complete `Run`."""

    task: TaskName
    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9._-]+$", description="run folder's name; the task's when absent"
    )
    runs: Path = Field(Path("runs"), description="folder that run folders are made in")
    seed: NonNegativeInt = 0
    data: Data
    budget: Budget
    tokenizer: Tokenizer = Tokenizer()
    images: Images = Images()
    noise: Noise = Noise()
    limits: Limits = Limits()
    cluster: Machines = Machines()
    machine: Here = Here()
    model: Model = Model()
    train: Train = Train()
    attack: Attack | None = Field(None, description="train a classifier on disturbed inputs")
    costs: Costs | None = Field(None, description="what a table's two classes cost to confuse: the cheaper is answered")
    adapter: Adapter | None = Field(None, description="train a small part beside the model in model.start, frozen")
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="after")
    def _classes_to_weigh(self) -> Self:
        for name in ("class_weights", "focal_gamma"):
            if getattr(self.train, name) and not self.task.startswith("classify_"):
                raise ValueError(f"train.{name}: {self.task} puts nothing in classes; leave it out")
        if self.attack is not None and not self.task.startswith("classify_"):
            raise ValueError(f"attack: {self.task} puts nothing in classes, and nothing else is attacked; leave it out")
        return self

    @model_validator(mode="after")
    def _something_to_adapt(self) -> Self:
        if self.adapter is not None and self.model.start is None:
            raise ValueError("adapter: there is no model to adapt; name one in model.start")
        return self

    @model_validator(mode="after")
    def _all_of_use(self) -> Self:
        misplaced = self.noise.misplaced(self.task) or self.images.misplaced(self.task)
        if misplaced is None and self.costs is not None:
            misplaced = self.costs.misplaced(self.task, self.data.positive, self.train.distorting)
        if misplaced is not None:
            raise ValueError(misplaced)
        return self
