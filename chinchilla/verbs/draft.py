"""The settings of a training that its model's shape does not decide: rates, batches, regularisation, precision."""

import math

from chinchilla.config.machine import Machine
from chinchilla.config.plan import OptimizerKind, TaskName, Training
from chinchilla.config.run import Run
from chinchilla.planning.adapter_flops import trained_flops_per_token
from chinchilla.planning.hparams import Advice
from chinchilla.planning.search import Facts
from chinchilla.verbs.choice import PEAK_SHARE
from chinchilla.verbs.choose import law_advice
from chinchilla.verbs.prepared import Prepared
from chinchilla.verbs.transfer import Start

BATCH_TOKENS = 2048
"""Labelled tokens a step, of text generation twice as many, as a pair has two sides: small, so that a short run has
many steps; Muon's work a step forbids much smaller ones."""

LEARNING_RATE = 5e-3
"""Peak rate of small models for runs of minutes: 3e-3 and 6e-3 did alike in trials (docs/training.md)."""

MUON_RATES: dict[TaskName, tuple[float, float]] = {
    "generate": (7e-3, 2e-2),
    "translate": (LEARNING_RATE, 1.5e-2),
    "summarise": (LEARNING_RATE, 1.5e-2),
    "classify_image": (LEARNING_RATE, 1e-3),
    "detect": (LEARNING_RATE, 1e-3),
}
"""Where what Muon does not train wants another rate than the matrices, both rates: tables of tokens three times theirs
(docs/training.md), all but an image's matrices and convolutions a fifth (docs/images.md)."""

LOW_RATES: dict[TaskName, float] = {"classify_text": 1e-3, "classify_table": 3e-4}
"""Where the usual one learns few examples by heart (docs/tables.md, docs/tasks.md)."""

START_RATE, FOREIGN_RATE, ADAPTER_RATE = 5e-4, 5e-5, 2e-3
"""Where weights are taken over from an own run, from elsewhere, and where an adapter is trained beside them."""

DROPOUT: dict[TaskName, float] = {"recommend": 0.3}
"""Where it is not a tenth."""

LEAST_MICRO_TOKENS, MOST_MICRO_TOKENS = 1024, 8192
"""Labelled tokens that go through the model at one time: enough for the products' speed, few enough for the memory."""

SMOOTHED: frozenset[TaskName] = frozenset(("translate", "summarise", "classify_image"))
"""Tasks whose labels are smoothed by a tenth."""

BATCH_POSITIONS, BATCH_EXAMPLES = 8192, (16, 512)
"""Where an example has one label: positions a step, and bounds on the examples that makes."""

TABLE_BATCH, TABLE_STEPS = 64, 300
"""Rows of a table that a step has at least, and steps that a pass has at least where there are more."""

START_STEPS, LEAST_LABELS = 100, 256
"""Steps that a run from a given model has at least, by labels a step down to so many (`BATCH_EXAMPLES` of classes)."""

DROPOUT_EPOCHS = 5
"""Passes over the data from which dropout is worth its cost; below, it only slows learning down."""


def draft_training(run: Run, machine: Machine, prepared: Prepared, time_s: float) -> Training:
    """The settings that do not depend on the shape; steps and intervals are filled in at the end."""
    fixed = run.train
    flops = run.budget.flops or time_s * PEAK_SHARE * machine.flops_per_s(machine.fastest_precision())
    facts = prepared.facts
    epochs = flops / facts.sparsity / (6 * facts.typical_params(flops)) / facts.unique_tokens
    foreign = prepared.start is not None and not prepared.start.is_own
    careful = foreign or run.adapter is not None
    advice = law_advice(run, prepared, machine, flops)
    usual = advice.batch_tokens if advice else _batch_labels(prepared.facts)
    batch_tokens = fixed.batch_tokens or _batch_for_start(usual, run, prepared, flops / PEAK_SHARE)
    optimizer = fixed.optimizer or ("adamw" if careful else "muon")
    rate, embedding_rate = _rates(run, optimizer, prepared.start, advice)
    defaults = {
        "optimizer": optimizer,
        "learning_rate": rate,
        "embedding_learning_rate": embedding_rate * (fixed.learning_rate / rate if fixed.learning_rate else 1.0),
        "weight_decay": 0.05,
        "schedule": "wsd",
        "warmup_steps": 40,
        "decay_fraction": 0.4,
        "clip_norm": 1.0,
        "label_smoothing": 0.1 if run.task in SMOOTHED and not fixed.focal_gamma else 0.0,
        "dropout": DROPOUT.get(run.task, 0.1) if epochs > DROPOUT_EPOCHS and not careful else 0.0,
        "ema_decay": 0.0,
        "precision": machine.fastest_precision(),
        "compile": False,
        "accumulation": _accumulation(batch_tokens, prepared.facts, machine.threads if machine.device == "cpu" else 1),
    }
    never = {"steps": 10**9, "eval_every": 10**9, "checkpoint_every": 10**9, "log_every": 10**9}
    said = {name: value for name, value in fixed.model_dump().items() if name in Training.model_fields}
    said = {name: value for name, value in said.items() if value is not None and name not in never}
    rest = {"batch_tokens": batch_tokens, "threads": machine.threads, "seed": run.seed}
    return Training(**never | defaults | rest | said | {"class_weights": prepared.class_weights(run)})


def _rates(run: Run, optimizer: OptimizerKind, start: Start | None, advice: Advice | None) -> tuple[float, float]:
    """Peak rates of matrices, and of embeddings and all else."""
    if start is not None:
        whole = START_RATE if start.is_own else FOREIGN_RATE
        rate = whole if run.adapter is None else ADAPTER_RATE
        return rate, rate
    if advice is not None:
        return advice.learning_rate, advice.learning_rate
    alike = LOW_RATES.get(run.task, LEARNING_RATE)
    return MUON_RATES.get(run.task, (alike, alike)) if optimizer == "muon" else (alike, alike)


def _batch_labels(facts: Facts) -> int:
    """Labels a step: tokens, or as many examples as have a step's usual positions."""
    if facts.task == "generate":
        return 2 * BATCH_TOKENS
    if not facts.labels_per_row:
        # Of a text and its summary the source is what costs.
        uneven = facts.mean_source_len > 2 * facts.mean_target_len > 0
        both = (facts.mean_source_len + facts.mean_target_len) / facts.mean_target_len if uneven else 2.0
        return round(2 * BATCH_TOKENS / both)
    fewest, most = BATCH_EXAMPLES
    if facts.task == "classify_table":
        fewest = TABLE_BATCH
        most = min(most, max(fewest, facts.unique_tokens // TABLE_STEPS))
    return min(max(round(BATCH_POSITIONS / facts.positions_per_label), fewest), most)


def _batch_for_start(usual: int, run: Run, prepared: Prepared, most_flops: float) -> int:
    """Fewer labels a step, where the model to start from is so large that there would be few steps.

    `most_flops`: what the time is worth at the peak, which large models come near. A shape to choose fits the budget.
    """
    if prepared.start is None or run.train.steps:
        return usual
    facts = prepared.facts
    shape = prepared.start.shape_for(facts, run.model)
    label_flops = trained_flops_per_token(shape, prepared.adapter_on(shape), facts.batch(usual))
    least = BATCH_EXAMPLES[0] if facts.labels_per_row else LEAST_LABELS
    return min(usual, max(least, round((run.budget.flops or most_flops) / label_flops / START_STEPS)))


def _accumulation(batch_labels: int, facts: Facts, threads: int) -> int:
    """Micro-batches a step: as many side by side as the threads and `LEAST_MICRO_TOKENS` allow, none too large."""
    uneven = facts.mean_source_len > 2 * facts.mean_target_len
    positions = batch_labels * (facts.positions_per_label if uneven else 1)
    sides = [n for n in range(1, threads + 1) if threads % n == 0 and positions / n >= LEAST_MICRO_TOKENS]
    side = max((n for n in sides if batch_labels >= n), default=1)
    return min(side * math.ceil(positions / (side * MOST_MICRO_TOKENS)), batch_labels)
