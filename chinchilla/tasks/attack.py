"""Disturbances of a classifier's inputs that raise its loss, and training against them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chinchilla.config.attack import Attack
from chinchilla.config.errors import UsageError
from chinchilla.config.plan import TaskName
from chinchilla.data.picture_classes import PictureClasses
from chinchilla.data.table_classes import TableClasses
from chinchilla.data.text_classes import TextClasses
from chinchilla.models.embed import Embed
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.task import Batch, Loss, Objective, Score, Task


class Box(NamedTuple):
    """How far each number of an input may be moved, and between what it must stay; all broadcast over a batch."""

    radius: Tensor
    low: Tensor
    high: Tensor


def box_of(codec: Any, eps: float) -> Box | None:
    """The reach of an attack on what this codec makes; None for texts, whose tokens' vectors are moved.

    Raises:
        UsageError: it is no classifier's.
    """
    match codec:
        case TextClasses():
            return None
        case PictureClasses():
            means, stds = (torch.tensor(each)[:, None, None] for each in (codec.colours.means, codec.colours.stds))
            return Box(eps / stds, -means / stds, (1 - means) / stds)
        case TableClasses():
            columns = codec.columns
            radius = torch.tensor([eps] * len(columns.numbers) + [0.0] * len(columns.categories))
            return Box(radius, torch.tensor(-torch.inf), torch.tensor(torch.inf))
    raise UsageError("attacks are for models that put texts, images or rows of tables in classes")


def disturbed_loss(
    task: Task, model: Transformer, batch: Batch, objective: Objective, attack: Attack, box: Box | None
) -> Loss:
    """The loss of a batch whose inputs were moved, within reach, to where it is high. Labels stay."""
    delta = disturbance(task, model, batch, objective, attack, box)
    with disturbed(model, batch, delta, box) as moved:
        return task.loss(model, moved, objective)


def disturbance(
    task: Task, model: Transformer, batch: Batch, objective: Objective, attack: Attack, box: Box | None
) -> Tensor:
    """Where to move a batch's inputs so that its loss is high: as `source`, or (batch, length, dim) for tokens."""
    delta = _start(model, batch, attack, box)
    for _ in range(attack.num_steps):
        delta.requires_grad_()
        with disturbed(model, batch, delta, box) as moved:
            loss = task.loss(model, moved, objective)
        (gradient,) = torch.autograd.grad(loss.total, delta)
        delta = _moved(model, batch, delta.detach(), gradient, attack, box)
    return delta


@contextmanager
def disturbed(model: Transformer, batch: Batch, delta: Tensor, box: Box | None) -> Iterator[Batch]:
    """The batch to give to the model, whose tokens' vectors are moved by `delta` in the block where there is no box."""
    if box is not None:
        yield {**batch, "source": batch["source"] + delta}
        return
    handle = _table(model).register_forward_hook(lambda module, inputs, output: output + delta.to(output.dtype))
    try:
        yield batch
    finally:
        handle.remove()


def _start(model: Transformer, batch: Batch, attack: Attack, box: Box | None) -> Tensor:
    """A random place within reach."""
    source = batch["source"]
    shape = source.shape if box is not None else (*source.shape, model.shape.dim)
    random = 2 * torch.rand(shape, generator=model.generator).to(source.device) - 1
    if box is not None:
        return _within(source, random * box.radius.to(source.device), box)
    return _ball(
        random, _reach(model, source, attack.eps) * torch.rand((), generator=model.generator).to(random.device)
    )


def _moved(
    model: Transformer, batch: Batch, delta: Tensor, gradient: Tensor, attack: Attack, box: Box | None
) -> Tensor:
    """A step up the gradient, and back to within reach."""
    source = batch["source"]
    if box is not None:
        return _within(source, delta + attack.step_share * box.radius.to(source.device) * gradient.sign(), box)
    reach = _reach(model, source, attack.eps)
    direction = gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return _inside(delta + attack.step_share * reach * direction, reach)


def _within(source: Tensor, delta: Tensor, box: Box) -> Tensor:
    """`delta` cut to the box around `source` and to the inputs there are."""
    radius, low, high = (each.to(source.device) for each in box)
    return (source + delta.clamp(-radius, radius)).clamp(low, high) - source


def _inside(delta: Tensor, reach: Tensor) -> Tensor:
    """`delta` cut to the ball."""
    return delta * (reach / delta.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)


def _reach(model: Transformer, source: Tensor, eps: float) -> Tensor:
    """How far each token's vector may be moved (batch, length, 1)."""
    with torch.no_grad():
        return eps * _table(model).weight[source].norm(dim=-1, keepdim=True)


def _ball(random: Tensor, length: Tensor) -> Tensor:
    return random / random.norm(dim=-1, keepdim=True).clamp_min(1e-12) * length


def _table(model: Transformer) -> torch.nn.Embedding:
    assert isinstance(model.embed, Embed)
    return model.embed.tokens


def hardened(task: Task, codec: Any, attack: Attack) -> "Hardened":
    """The task, trained against this attack.

    Raises:
        UsageError: it puts nothing in classes.
    """
    return (FreelyHardened if attack.kind == "free" else Hardened)(task, codec, attack)


class Hardened:
    """A task that is trained on disturbed inputs, and is else what it was."""

    def __init__(self, task: Task, codec: Any, attack: Attack) -> None:
        self.name: TaskName = task.name
        self._task, self._attack, self._box = task, attack, box_of(codec, attack.eps)

    def loss(self, model: Transformer, batch: Batch, objective: Objective) -> Loss:
        """Of disturbed inputs while training; of the inputs as they are where nothing is learned."""
        if not torch.is_grad_enabled():
            return self._task.loss(model, batch, objective)
        return disturbed_loss(self._task, model, batch, objective, self._attack, self._box)

    def score(self, model: Transformer, codec: Any, examples: Sequence[Any], /, *args: Any, **options: Any) -> Score:
        """Of the inputs as they are."""
        return self._task.score(model, codec, examples, *args, **options)

    def question(self, example: Any) -> Any:
        """As the task."""
        return self._task.question(example)

    def reply(self, model: Transformer, codec: Any, question: Any) -> str:
        """As the task."""
        return self._task.reply(model, codec, question)

    def serve(
        self, model: Transformer, codec: Any, questions: Sequence[Any], /, *args: Any, **options: Any
    ) -> list[dict[str, Any]]:
        """As the task."""
        return self._task.serve(model, codec, questions, *args, **options)

    def show(self, example: Any) -> tuple[str, str | None]:
        """As the task."""
        return self._task.show(example)


DISTURBANCE = "disturbance"
"""Of a batch: how its inputs are moved, a tensor that gets a gradient when the weights do."""


class FreelyHardened(Hardened):
    """A task whose batches are seen several steps in a row, disturbed by what the steps before have found.

    Each backward pass gives the gradients of the weights and the disturbance's own (Shafahi 2019, algorithm 1). Who
    trains keeps the disturbance from step to step, also from one batch to the next.
    """

    @property
    def replays(self) -> int:
        """Steps in a row that see a batch."""
        return self._attack.replays

    def loss(self, model: Transformer, batch: Batch, objective: Objective) -> Loss:
        """Of inputs that are moved by the batch's `DISTURBANCE`; of the inputs as they are where it has none."""
        if DISTURBANCE not in batch:
            return self._task.loss(model, batch, objective)
        with disturbed(model, batch, batch[DISTURBANCE], self._box) as moved:
            return self._task.loss(model, moved, objective)

    def carried(self, model: Transformer, batch: Batch, delta: Tensor | None) -> Tensor:
        """What a step begins with: a disturbance within reach of these inputs, by the last step's (None: at rest)."""
        source = batch["source"]
        if delta is None:
            shape = source.shape if self._box is not None else (*source.shape, model.shape.dim)
            return torch.zeros(shape, device=source.device)
        if self._box is None:
            return _inside(delta, _reach(model, source, self._attack.eps))
        # Nothing moves what is missing, and nothing is said of it to the next batch.
        return _within(source, delta, self._box).nan_to_num()

    def moved(self, model: Transformer, batch: Batch) -> Tensor:
        """The batch's disturbance, a step further up its gradient."""
        delta = batch[DISTURBANCE]
        assert delta.grad is not None
        return _moved(model, batch, delta.detach(), delta.grad, self._attack, self._box).nan_to_num()
