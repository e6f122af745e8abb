"""The one configuration tree: TOML file, Python object and documentation at once."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from chinchilla.config.frozen import Frozen
from chinchilla.config.machine import Precision
from chinchilla.config.plan import OptimizerKind, ScheduleKind, TaskName
from chinchilla.config.shape import Activation, AttentionKind, NormKind, PositionKind
from chinchilla.config.units import Count, Flops, SizeBytes, TimeS

Fraction = Annotated[float, Field(ge=0, lt=1)]
Files = Path | tuple[Path, ...]


class Data(Frozen):
    """Where the examples are. Paths in a file are relative to that file.

    `train`, `valid` and `test` each name one file, or two parallel text files (source, target).
    `valid` and `test` are cut from `train` when absent: seeded, by group, never by line.
    """

    train: Files = Field(description="a TSV, JSONL, Parquet or text file; or two parallel text files")
    valid: Files | None = None
    test: Files | None = None
    format: Literal["tsv", "jsonl", "parquet", "text"] | None = Field(
        None, description="by the file's ending when absent"
    )
    source: str = Field("source", description="column of the text to translate (JSONL, Parquet)")
    target: str = Field("target", description="column of its translation (JSONL, Parquet)")
    text: str = Field("text", description="column of the text (JSONL, Parquet)")
    group: str = Field("group", description="column naming the document a row belongs to, for splitting")
    invalid: Literal["refuse", "skip"] = Field(
        "refuse",
        description="a malformed row: stop and name it, or leave it out and count it (at most a tenth of the rows)",
    )


class Tokenizer(Frozen):
    """The tokenizer to train on the training data, or a ready `tokenizer.json`."""

    kind: Literal["bpe", "unigram"] = "bpe"
    vocab_size: Annotated[int, Field(ge=300, le=200_000)] | None = None
    file: Path | None = None


class Budget(Frozen):
    """What may be spent: exactly one of wall-clock time or training FLOPs."""

    time: Annotated[TimeS, Field(gt=0)] | None = Field(None, description='like "10m", "1h", 90 (seconds)')
    flops: Annotated[Flops, Field(gt=0)] | None = Field(None, description='like "1e15", "200T"')

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.time is None) == (self.flops is None):
            raise ValueError('give exactly one of time (like "10m") or flops (like "1e15")')
        return self


class Limits(Frozen):
    """What the trained model must fit."""

    size: Annotated[SizeBytes, Field(gt=0)] | None = Field(None, description="weights on disk in fp32")
    memory: Annotated[SizeBytes, Field(gt=0)] | None = Field(None, description="peak memory of training")


class Machines(Frozen):
    """The machines to plan for; absent, this one."""

    file: Path | None = Field(None, description="a cluster.toml: nodes and links")


class Model(Frozen):
    """Parts of the shape to fix; what is left out the plan decides."""

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
    dropout: Fraction | None = None
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


class Evaluate(Frozen):
    """How answers are searched for when a model is scored."""

    beam_size: PositiveInt = 4
    max_examples: PositiveInt | None = Field(None, description="score only the first so many test examples")


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
    limits: Limits = Limits()
    cluster: Machines = Machines()
    model: Model = Model()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
