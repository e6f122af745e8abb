"""The plan's table: each choice, and why."""

from chinchilla.config.adapter import Adapter
from chinchilla.config.estimate import Estimate
from chinchilla.config.machine import Machine
from chinchilla.config.plan import Decision, OptimizerKind, Training
from chinchilla.config.run import Run
from chinchilla.config.shape import ImageStem, Shape
from chinchilla.config.units import show_bytes, show_count, show_time
from chinchilla.planning import count, search
from chinchilla.planning.adapters import added_params, trained_params
from chinchilla.planning.bounds import serving_bytes, told_request
from chinchilla.planning.interval import Interval
from chinchilla.planning.repeat import MEASURED_EPOCHS
from chinchilla.planning.search import Facts
from chinchilla.planning.traffic import step_traffic, token_bytes, told_step
from chinchilla.verbs.choice import Choice
from chinchilla.verbs.prepared import Prepared


def decisions(
    run: Run,
    prepared: Prepared,
    machine: Machine,
    training: Training,
    choice: Choice,
    saving: Interval,
    tokens: float,
    sated: bool,
    memory_bytes: Estimate,
) -> list[Decision]:
    """The plan's table; `key` is the setting in [train] that takes a decision out of the plan's hands.

    `sated`: the data, seen as often as it is worth, ends the run before the budget does.
    """
    facts, shape = prepared.facts, choice.shape
    layers = "+".join(str(number) for number in (shape.num_encoder_layers, shape.num_decoder_layers) if number)
    rates = ", ".join(f"{name} {machine.flops_per_s(name) / 1e9:.0f}" for name in ("bf16", "fp32"))
    epochs = f"{show_count(tokens / facts.unique_tokens)} epochs of {show_count(facts.unique_tokens)}"
    if choice.law is None and tokens > MEASURED_EPOCHS.high * facts.unique_tokens:
        epochs += f"; what repeats teach was measured up to {MEASURED_EPOCHS.high:g}, with texts"
    steps = _sated(prepared) if sated else "what the budget holds at the measured speed"
    alike = "examples packed in rows" if facts.packed else "rows without padding"
    replays = 1 if run.attack is None else run.attack.replays
    again = f", each for {replays} steps in a row" if replays > 1 else ""
    often = "little data for this budget" if training.dropout else "too few passes over the data for dropout to pay"
    if prepared.start is not None and not prepared.start.is_own:
        often = "none in what was trained elsewhere, mostly without"
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
        ("optimizer", training.optimizer, "optimizer", _why(training.optimizer, run.adapter)),
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


def _sated(prepared: Prepared) -> str:
    told = "more passes over the data did harm in trials; the budget would hold more"
    if prepared.start is None and prepared.run.adapter is None:
        return told
    return f"{told}; they were of models from nothing, and train.steps may ask for more"


def _regularisation(training: Training) -> str:
    told = f"dropout {training.dropout:g}, label smoothing {training.label_smoothing:g}"
    told += f", paths dropped up to {training.drop_path:g}" if training.drop_path else ""
    weights = training.class_weights
    told += f", classes weigh {min(weights):.3g} to {max(weights):.3g}" if weights else ""
    return told + (f", focal loss of {training.focal_gamma:g}" if training.focal_gamma else "")


def _why(optimizer: OptimizerKind, adapter: Adapter | None) -> str:
    if optimizer == "muon":
        return "Muon for matrices and convolutions, AdamW for the rest: fewer steps to a loss"
    if adapter is None:
        return "as most models from elsewhere were trained"
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
