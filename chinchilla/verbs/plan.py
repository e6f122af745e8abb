"""`chinchilla plan`: what to train for the budget, what it will cost, how good it will get, and why."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from chinchilla.config.adapter import Adapter
from chinchilla.config.errors import BudgetError, UsageError
from chinchilla.config.estimate import Estimate
from chinchilla.config.machine import Machine
from chinchilla.config.plan import Decision, OptimizerKind, Plan, TaskName, Training
from chinchilla.config.run import Run
from chinchilla.config.shape import ImageStem, Shape
from chinchilla.config.units import show_bytes, show_count, show_time
from chinchilla.data.sources import default_cache
from chinchilla.parallel.measure import cached_measure
from chinchilla.planning import audit, cost, count, search
from chinchilla.planning.adapters import added_params, kept_params, trained_params
from chinchilla.planning.bounds import serving_bytes, told_request
from chinchilla.planning.hparams import Advice
from chinchilla.planning.interval import Interval, checkpoint_interval
from chinchilla.planning.machine import step_time
from chinchilla.planning.own_law import OwnLaw, read_law
from chinchilla.planning.repeat import MEASURED_EPOCHS
from chinchilla.planning.rows import rows_of
from chinchilla.planning.search import Facts
from chinchilla.planning.traffic import step_traffic, token_bytes, told_step
from chinchilla.training.allocator import keep_freed_memory, release_freed_memory, used_bytes
from chinchilla.training.trainer import VALID_BATCHES
from chinchilla.verbs import layouts
from chinchilla.verbs.prepare import prepare
from chinchilla.verbs.prepared import Prepared
from chinchilla.verbs.probes import (
    CHECKPOINT_SHARE,
    EVAL_SHARE,
    PEAK_SHARE,
    Choice,
    choose,
    law_advice,
    most_tokens,
    room_for,
)
from chinchilla.verbs.transfer import check_start
from chinchilla.verbs.weighed import with_choice

log = logging.getLogger("chinchilla")

Tell = Callable[[str], None]

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
    "classify_table": (3e-4, 3e-4),
}
"""Where others are wanted, of matrices and of what Muon does not train: tables of tokens three times the matrices' rate
(docs/training.md), all but an image's matrices and convolutions a fifth (docs/images.md), columns far lower ones, or
their few rows are learned by heart (docs/tables.md)."""

START_RATE, ADAPTER_RATE = 5e-4, 2e-3
"""The same where weights are taken over, and where an adapter is trained beside them: guesses, to forget little."""

DROPOUT: dict[TaskName, float] = {"recommend": 0.3}
"""Where it is not a tenth."""

LEAST_MICRO_TOKENS, MOST_MICRO_TOKENS = 1024, 8192
"""Labelled tokens that go through the model at one time: enough for the products' speed, few enough for the memory."""

SMOOTHED: frozenset[TaskName] = frozenset(("translate", "summarise", "classify_image"))
"""Tasks whose labels are smoothed by a tenth."""

BATCH_POSITIONS, BATCH_EXAMPLES = 8192, (16, 512)
"""Where an example has one label: positions a step, and bounds on the examples that makes."""

TABLE_BATCH, TABLE_STEPS = 64, 50
"""Rows of a table that a step has at least, and steps that a pass has at least where there are more."""

DROPOUT_EPOCHS = 5
"""Passes over the data from which dropout is worth its cost; below, it only slows learning down."""


@dataclass(frozen=True)
class _Pauses:
    """Seconds that a validation and a checkpoint take from the steps."""

    eval_s: float
    checkpoint_s: float


MEMORY_SPREAD = 0.05
"""Of a peak that a probe has shown: of 60 runs eight in ten lay within 4 % (docs/planning-audit.md)."""

NEW_PLAN_ABOVE = 0.1
"""Share of the time left that the rest of the steps may leave over before they are planned anew during training."""

COUNTED_SPREAD = 0.01
"""Relative spread of what a number of steps sees: batches are filled a little unevenly."""

WRITE_BYTES_PER_S = 2e8
"""What a checkpoint's writing, hashing and reading back run at: done aside, but on the processors that train."""


def plan(run: Run, tell: Tell = lambda text: None, law: Path | None = None) -> tuple[Plan, Prepared]:
    """Plan a run, and give the prepared data with it. `law` is one of the same data, of a sweep or a fit.

    Raises:
        DataError: data that cannot be used, or that the law is not of.
        UsageError: money or energy without a price or power to reckon with, or a wrong cluster file.
        BudgetError: not even one step fits the budget, or no model fits the limits.
        FaultError: what past runs taught is kept in a damaged file.
    """
    begun = time.perf_counter()
    cluster = layouts.read(run)
    own = None if law is None else known_law(run, law)
    check_start(run)
    run, reckoned = timed(run, tell)
    prepared = prepare(run, tell)
    if law is not None and own is not None:
        own = own.for_data(prepared.facts, law)
    machine = measured_machine(run, tell)
    learnt = audit.load(default_cache(), machine)
    keep_freed_memory()
    time_s = _time_budget(run, machine, begun)
    draft = draft_training(run, machine, prepared, time_s)
    draft = draft if own is None else own.over(draft, run.train)
    layouts.require_rates(cluster, draft.precision)
    _refuse_tiny(time_s, prepared, machine, draft)
    process_bytes = used_bytes(torch.device(machine.device))
    choice = choose(run, prepared, machine, draft, time_s, process_bytes, tell, own)
    release_freed_memory()
    made = assemble(run, prepared, machine, draft, choice, begun)
    made = made.model_copy(update={"decisions": (*reckoned, *made.decisions)})
    made = audit.recalibrated(made, learnt)
    return with_choice(made, choice, prepared.facts, room_for(run, prepared, machine, draft, process_bytes)), prepared


def known_law(run: Run, path: Path) -> OwnLaw:
    """The user's own law for a run.

    Raises:
        DataError: the file has none.
        UsageError: the run leaves a law nothing to decide.
    """
    if run.model.start is not None:
        raise UsageError(f"--law: decides the size, which model.start {run.model.start} fixes: leave one of them out")
    return read_law(path)


def timed(run: Run, tell: Tell = lambda text: None) -> tuple[Run, tuple[Decision, ...]]:
    """The run with money or energy turned into time, and how that was reckoned.

    Raises:
        UsageError: the price or the power of this machine is not known.
    """
    machine = measured_machine(run, tell) if run.budget.energy is not None else None
    budget, reckoned = cost.in_time(run.budget, known_tariff(run, machine))
    if not reckoned:
        return run, ()
    assert budget.time is not None
    told = Decision(name="budget", value=show_time(budget.time), reason=reckoned)
    return run.model_copy(update={"budget": budget}), (told,)


def known_tariff(run: Run, machine: Machine | None) -> cost.Tariff:
    """What this machine costs, draws and emits, as far as recipe, measurement and cluster file tell."""
    power = machine.power if machine is not None else None
    return cost.tariff(run.machine, layouts.read(run), power.watts if power is not None else None)


def measured_machine(run: Run, tell: Tell) -> Machine:
    """This machine as measured, with torch set to the run's number of threads."""
    threads = run.train.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    tell("measuring the machine (kept for the next time)")
    return cached_measure(default_cache(), device="cuda" if torch.cuda.is_available() else "cpu", threads=threads)


def _time_budget(run: Run, machine: Machine, begun: float) -> float:
    """Seconds that may still be spent, more than 0; for a FLOP budget those it is thought to take."""
    if run.budget.time is not None:
        spent_s = time.perf_counter() - begun
        if run.budget.time <= spent_s:
            raise BudgetError(f"budget: reading and encoding the data alone took {show_time(spent_s)}: raise it")
        return run.budget.time - spent_s
    assert run.budget.flops is not None
    return run.budget.flops / (PEAK_SHARE * machine.flops_per_s(machine.fastest_precision()))


def draft_training(run: Run, machine: Machine, prepared: Prepared, time_s: float) -> Training:
    """The settings that do not depend on the shape; steps and intervals are filled in at the end."""
    fixed = run.train
    flops = run.budget.flops or time_s * PEAK_SHARE * machine.flops_per_s(machine.fastest_precision())
    facts = prepared.facts
    epochs = flops / facts.sparsity / (6 * facts.typical_params(flops)) / facts.unique_tokens
    advice = law_advice(run, prepared, machine, flops)
    batch_tokens = fixed.batch_tokens or (advice.batch_tokens if advice else _batch_labels(prepared.facts))
    optimizer = fixed.optimizer or ("muon" if run.adapter is None else "adamw")
    rate, embedding_rate = _rates(run, optimizer, prepared.start is not None, advice)
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
        "dropout": DROPOUT.get(run.task, 0.1) if epochs > DROPOUT_EPOCHS and run.adapter is None else 0.0,
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


def _rates(run: Run, optimizer: OptimizerKind, started: bool, advice: Advice | None) -> tuple[float, float]:
    """Peak rates of matrices, and of embeddings and all else."""
    if started:
        rate = ADAPTER_RATE if run.adapter is not None else START_RATE
        return rate, rate
    if advice is not None:
        return advice.learning_rate, advice.learning_rate
    alike = LEARNING_RATE, LEARNING_RATE
    return MUON_RATES.get(run.task, alike) if optimizer == "muon" else alike


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


def _accumulation(batch_labels: int, facts: Facts, threads: int) -> int:
    """Micro-batches a step: as many side by side as the threads and `LEAST_MICRO_TOKENS` allow, none too large."""
    uneven = facts.mean_source_len > 2 * facts.mean_target_len
    positions = batch_labels * (facts.positions_per_label if uneven else 1)
    sides = [n for n in range(1, threads + 1) if threads % n == 0 and positions / n >= LEAST_MICRO_TOKENS]
    side = max((n for n in sides if batch_labels >= n), default=1)
    return min(side * math.ceil(positions / (side * MOST_MICRO_TOKENS)), batch_labels)


def _refuse_tiny(time_s: float, prepared: Prepared, machine: Machine, draft: Training) -> None:
    """Refuse a budget that even a hopeful estimate of the smallest model's step does not fit, before any training."""
    facts = prepared.facts
    if prepared.start is not None:
        return  # a shape that is given has no smaller one to fall back on: its probe tells
    layers = search.depth(facts.family, prepared.run.model, search.LAYERS[0])
    smallest = search.build(facts, prepared.run.model, search.widths(facts)[0], *layers)
    batch = facts.batch(draft.batch_tokens / draft.accumulation)
    step_s = step_time(smallest, batch, machine, draft.precision, draft.optimizer, draft.accumulation).estimate()
    if time_s < step_s.p10:
        fits = f"budget: {show_time(max(time_s, 0))} are left once the data is read"
        if (flops := prepared.run.budget.flops) is not None:
            fits = f"budget.flops: {flops:.3g} FLOP take about {time_s:.2g} s here"
        raise BudgetError(
            f"{fits}, and one step of the smallest model takes about {show_time(step_s.p50)}: raise the budget"
        )


def assemble(run: Run, prepared: Prepared, machine: Machine, draft: Training, choice: Choice, begun: float) -> Plan:
    """The plan of a chosen shape; `begun` is when planning began, by `time.perf_counter`.

    Raises:
        BudgetError: not even one step fits the budget.
    """
    facts, shape = prepared.facts, choice.shape
    batches = prepared.batches(draft)
    tokens_per_step = batches.unique_tokens / batches.num_batches(0) * draft.accumulation
    flops_per_token = count.flops_per_token(shape, facts.batch(draft.batch_tokens / draft.accumulation))
    elapsed_s = time.perf_counter() - begun
    pauses = _pauses(prepared, draft, choice)
    step_s, step_flops = choice.step_time, tokens_per_step * flops_per_token
    run_s = _run_time(run, step_s.p50, step_flops, elapsed_s)
    saving = checkpoint_interval(pauses.checkpoint_s, run_s, CHECKPOINT_SHARE)
    most = most_tokens(run, facts)
    most_steps = None if math.isinf(most) else math.ceil(most / tokens_per_step)
    training = _scheduled(run, draft, choice, pauses, saving, step_flops, elapsed_s, most_steps)
    tokens = training.steps * tokens_per_step
    clock_s = None if run.train.steps else run.budget.time
    filled_s = None if training.steps == most_steps else clock_s
    seen, train_time_s = _course(tokens, _train_time(training, step_s, pauses), step_s, facts.labels, filled_s)
    memory_bytes = _memory(choice, machine)
    num_params = count.num_params(shape) + kept_params(shape, run.adapter)
    return Plan(
        task=run.task,
        shape=shape,
        training=training,
        num_params=num_params,
        flops_per_token=flops_per_token,
        unique_tokens=facts.unique_tokens,
        tokens_per_step=tokens_per_step,
        bytes_per_token=facts.bytes_per_token,
        machine=machine,
        predicted={
            "step_time_s": step_s,
            "train_time_s": train_time_s,
            "tokens": seen,
            "loss": choice.predict_loss(tokens),
            "memory_bytes": memory_bytes,
            "size_bytes": Estimate.around(4 * num_params, 0.01, "bytes", "measured"),
            "flops": seen.scaled(flops_per_token, "FLOP"),
            "latency_s": choice.answer_on(machine, facts.request).estimate(),
            **cost.costs(cost.later(train_time_s, elapsed_s), known_tariff(run, machine)),
        },
        decisions=tuple(_decisions(run, prepared, machine, training, choice, saving, tokens, memory_bytes)),
        probes=choice.probes,
        rows=rows_of(facts),
        planning_time_s=elapsed_s,
        budget_time_s=clock_s,
        budget_flops=run.budget.flops,
        most_steps=most_steps,
    )


def _memory(choice: Choice, machine: Machine) -> Estimate:
    """What the process holds now, and what training takes beside it."""
    needs = used_bytes(torch.device(machine.device)) + choice.needs_bytes
    if choice.probes:
        return Estimate.around(needs, MEMORY_SPREAD, "bytes", "measured")
    return Estimate.around(needs, 0.3, "bytes", "guess")


def _pauses(prepared: Prepared, draft: Training, choice: Choice) -> _Pauses:
    """As measured where there was a probe; else a validation's batches take a third of a training step's time."""
    valid_batches = min(VALID_BATCHES, prepared.valid_batches(draft).num_batches(0))
    thought_s = valid_batches * choice.step_time.p50 / draft.accumulation / 3
    adapter = prepared.adapter_on(choice.shape)
    saved = count.num_params(choice.shape) if adapter is None else trained_params(choice.shape, adapter)
    return _Pauses(
        eval_s=thought_s if choice.eval_time_s is None else choice.eval_time_s,
        checkpoint_s=5 * 4 * saved / WRITE_BYTES_PER_S,
    )


def _train_time(training: Training, step_time_s: Estimate, pauses: _Pauses) -> Estimate:
    """Steps, validations and checkpoints; the last step has one of each."""
    paused_s = math.ceil(training.steps / training.eval_every) * pauses.eval_s
    paused_s += math.ceil(training.steps / training.checkpoint_every) * pauses.checkpoint_s
    low, middle, high = (
        paused_s + training.steps * value for value in (step_time_s.p10, step_time_s.p50, step_time_s.p90)
    )
    return Estimate(p10=low, p50=middle, p90=high, unit="s", source=step_time_s.source)


def _course(
    tokens: float, train_time_s: Estimate, step_s: Estimate, unit: str, clock_s: float | None
) -> tuple[Estimate, Estimate]:
    """What is seen, and how long it takes. A clock that is set leaves the tokens open; else it is the other way round.

    A run that the clock bounds plans its steps anew where they would exceed it, or fall short by `NEW_PLAN_ABOVE`.
    """
    if clock_s is None:
        return Estimate.around(tokens, COUNTED_SPREAD, unit, "measured"), train_time_s
    slowest, fastest = step_s.p50 / step_s.p90, step_s.p50 / step_s.p10
    seen = Estimate(p10=tokens * slowest, p50=tokens, p90=tokens * fastest, unit=unit, source=step_s.source)
    return seen, Estimate.around(train_time_s.p50, NEW_PLAN_ABOVE, "s", step_s.source)


def _run_time(run: Run, step_s: float, step_flops: float, elapsed_s: float) -> float:
    """Seconds that training is going to take, at least one step's."""
    if run.train.steps:
        return run.train.steps * step_s
    if run.budget.time is not None:
        return max(step_s, run.budget.time - elapsed_s)
    return max(1.0, (run.budget.flops or 0) / step_flops) * step_s


def _scheduled(
    run: Run,
    draft: Training,
    choice: Choice,
    pauses: _Pauses,
    saving: Interval,
    step_flops: float,
    elapsed_s: float,
    most_steps: int | None,
) -> Training:
    """The draft with the steps that fit the budget, and the intervals between validations and checkpoints."""
    step_s = choice.step_time.p50
    eval_s, checkpoint_s = pauses.eval_s, pauses.checkpoint_s
    eval_every = search.interval(eval_s, step_s, EVAL_SHARE)
    checkpoint_every = max(1, math.ceil(saving.time_s / step_s))
    if run.train.steps:
        steps = run.train.steps
    elif run.budget.time is not None:
        steps = search.num_steps(
            run.budget.time - elapsed_s,
            step_s,
            eval_time_s=eval_s,
            eval_every=eval_every,
            checkpoint_time_s=checkpoint_s,
            checkpoint_every=checkpoint_every,
        )
    else:
        steps = int((run.budget.flops or 0) / step_flops)
        if steps < 1:
            raise BudgetError(f"budget.flops: one step takes {step_flops:.3g} FLOP: raise it or fix a smaller model")
    steps = min(steps, most_steps or steps)
    return draft.model_copy(
        update={
            "compile": choice.compile,
            "recompute": choice.recompute,
            "steps": steps,
            "warmup_steps": min(draft.warmup_steps, max(1, steps // 10)),
            "eval_every": run.train.eval_every or min(steps, max(eval_every, steps // 10)),
            "checkpoint_every": run.train.checkpoint_every or min(steps, checkpoint_every),
            "log_every": max(1, steps // 200),
        }
    )


def _regularisation(training: Training) -> str:
    told = f"dropout {training.dropout:g}, label smoothing {training.label_smoothing:g}"
    told += f", paths dropped up to {training.drop_path:g}" if training.drop_path else ""
    weights = training.class_weights
    told += f", classes weigh {min(weights):.3g} to {max(weights):.3g}" if weights else ""
    return told + (f", focal loss of {training.focal_gamma:g}" if training.focal_gamma else "")


def _why(optimizer: OptimizerKind) -> str:
    if optimizer == "muon":
        return "Muon for matrices and convolutions, AdamW for the rest: fewer steps to a loss"
    return "as adapters are trained: Muon was not tried on their thin factors"


def _told_rates(training: Training) -> str:
    rate, embedding_rate = training.learning_rate, training.embedding_learning_rate
    return f"{rate:.3g}" if rate == embedding_rate else f"{rate:.3g}, of embeddings {embedding_rate:.3g}"


def _adapter(shape: Shape, adapter: Adapter | None) -> list[tuple[str, str, str, str]]:
    """The row on how little is trained."""
    if adapter is None:
        return []
    trained = trained_params(shape, adapter)
    share = trained / (count.num_params(shape) + added_params(shape, adapter))
    value = f"{adapter.kind} of rank {adapter.rank}, {show_count(trained)} numbers"
    return [("adapter", value, "", f"{100 * share:.2g} % of all; the rest stays as it is")]


def _moved(facts: Facts, shape: Shape, machine: Machine, training: Training) -> tuple[str, str, str]:
    """The row on what a step does and moves."""
    batch, dropout = facts.batch(training.batch_tokens / training.accumulation), training.dropout > 0
    found = step_traffic(
        shape, batch, training.precision, training.optimizer, dropout=dropout, accumulation=training.accumulation
    )
    value, why = told_step(found, machine, training.precision)
    return value, "", why


def _chosen_among(facts: Facts) -> tuple[str, str, str, str]:
    """The row on what the model chooses among."""
    if facts.num_classes:
        return "classes", f"{facts.num_classes:,}", "", f"of {facts.num_examples:,} examples"
    return "vocabulary", f"{facts.vocab_size:,}", "", f"{facts.bytes_per_token:.3g} bytes a token here"


def _patches(shape: Shape) -> list[tuple[str, str, str, str]]:
    """The row on what an image is cut into."""
    if not isinstance(shape.stem, ImageStem):
        return []
    stem = shape.stem
    value = f"{stem.num_patches} of {stem.patch} x {stem.patch} pixels"
    return [
        (
            "patches",
            value,
            "",
            f"the size is weighed by images, not by these; {shape.activation} and positions laid "
            "out as a grid did better in trials (docs/images.md)",
        )
    ]


def _decisions(
    run: Run,
    prepared: Prepared,
    machine: Machine,
    training: Training,
    choice: Choice,
    saving: Interval,
    tokens: float,
    memory_bytes: Estimate,
) -> list[Decision]:
    """The plan's table; `key` is the setting in [train] that takes a decision out of the plan's hands."""
    facts, shape = prepared.facts, choice.shape
    layers = "+".join(str(number) for number in (shape.num_encoder_layers, shape.num_decoder_layers) if number)
    rates = ", ".join(f"{name} {machine.flops_per_s(name) / 1e9:.0f}" for name in ("bf16", "fp32"))
    epochs = f"{show_count(tokens / facts.unique_tokens)} epochs of {show_count(facts.unique_tokens)}"
    if choice.law is None and tokens > MEASURED_EPOCHS.high * facts.unique_tokens:
        epochs += f"; what repeats teach was measured up to {MEASURED_EPOCHS.high:g}, with texts"
    sated = tokens >= most_tokens(run, facts)
    steps = "what the budget holds at the measured speed"
    steps = "more passes over the data did harm in trials; the budget would hold more" if sated else steps
    alike = "examples packed in rows" if facts.packed else "rows without padding"
    replays = 1 if run.attack is None else run.attack.replays
    again = f", each for {replays} steps in a row" if replays > 1 else ""
    often = "the data is seen often" if training.dropout else "too few passes over the data for dropout to pay"
    often = often if run.adapter is None else "none in what stays as it is; the adapter's own is adapter.dropout"
    recompute = "else memory does not suffice" if training.recompute else "activations fit the memory; a third faster"
    norm = "as the recipe says" if run.model.norm else "LayerNorm's kernel is 4× RMSNorm's on CPUs"
    norm = norm if prepared.start is None else "that of the model it starts from"
    cut = search.left_out(facts, machine, run.limits, run.model) if choice.probes else ""
    why = "; ".join(filter(None, (choice.reason, cut)))
    answer = f"{show_time(choice.answer_on(machine, facts.request).total_s)}, "
    answer += show_bytes(serving_bytes(shape, facts.request))
    alone = f"{told_request(facts.request)}, alone, in fp32 on this machine"
    if moved := token_bytes(shape, facts.request):
        alone += f"; each pass of the decoder moves {show_bytes(moved)}"
    rows = (
        # name, value, key, why
        ("model", f"{layers} layers of {shape.dim}, {show_count(count.num_params(shape))}", "", why),
        *_adapter(shape, prepared.adapter_on(shape)),
        ("norm", shape.norm, "", norm),
        *_patches(shape),
        _chosen_among(facts),
        ("steps", f"{training.steps:,}", "steps", steps),
        (facts.labels, show_count(tokens), "", epochs),
        (
            "batch",
            f"{training.batch_tokens:,} {facts.labels}{again}",
            "batch_tokens",
            f"many steps in little time; {alike}, all alike",
        ),
        ("optimizer", training.optimizer, "optimizer", _why(training.optimizer)),
        ("learning rate", _told_rates(training), "learning_rate", choice.rate_reason),
        (
            "schedule",
            f"{training.schedule}, last {training.decay_fraction:.0%} decays to 0",
            "schedule",
            "can be planned anew without losing what was trained",
        ),
        (
            "regularisation",
            _regularisation(training),
            "dropout",
            often,
        ),
        ("precision", training.precision, "precision", f"measured GFLOP/s: {rates}"),
        ("recompute", "yes" if training.recompute else "no", "recompute", recompute),
        ("compile", "yes" if training.compile else "no", "compile", choice.compile_reason),
        (
            "checkpoints",
            f"every {training.checkpoint_every:,} steps, {training.keep_checkpoints} kept",
            "checkpoint_every",
            saving.reason,
        ),
        ("a step", *_moved(facts, shape, machine, training)),
        ("peak memory", show_bytes(memory_bytes.p50), "", "this process, the model's state, a step's micro-batches"),
        ("one answer", answer, "", alone),
    )
    said = {name for name, value in run.train.model_dump().items() if value is not None}
    return [
        Decision(name=name, value=value, reason="as the recipe says" if key in said else why)
        for name, value, key, why in rows
    ]
