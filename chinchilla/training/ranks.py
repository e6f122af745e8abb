"""AdaLoRA's ranks (Zhang 2023, arXiv 2303.10512): directions that matter stay, others go, under one budget."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from chinchilla.config.adapter import Allotment
from chinchilla.models.adapt import AdaLora

FACTORS = ("lora_A", "lora_B", "lora_E")


def settled_step(steps: int, allot: Allotment) -> int:
    """The step of `steps` after which no rank is taken away any more: T − t_f, before the last."""
    return steps - max(1, round(allot.settle * steps))


def budget(step: int, steps: int, first: int, last: int, allot: Allotment) -> int:
    """Ranks of all maps together after `step` of `steps`: `first`, then a cubic fall to `last` (§3.3).

    b = last + (first − last) · (1 − (t − t_i)/(T − t_i − t_f))³ from t_i on. The paper prints t − t_i − t_f above the
    line, which joins neither end; its code has this.
    """
    begin, end = round(allot.hold * steps), settled_step(steps, allot)
    if step >= end:
        return last
    left = 1.0 if step <= begin else 1 - (step - begin) / (end - begin)
    return last + round((first - last) * left**3)


class Ranks:
    """The ranks of a model's `AdaLora` maps while it is trained; without such maps it does nothing.

    `settled` says whether the last allotment was made: which directions are left does not change after it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.maps = {name: module for name, module in model.named_modules() if isinstance(module, AdaLora)}
        self._averages: dict[str, Tensor] = {}
        self._alive: dict[str, Tensor] = {}

    @property
    def settled(self) -> bool:
        """Whether the model has come down to its budget for good."""
        return len(self._alive) == len(self.maps)

    def see(self) -> None:
        """Add the orthogonality penalty's gradient to the step's, then take in how much each number matters."""
        if self.maps:
            self._penalise()
            self._weigh()

    def _penalise(self) -> None:
        factors = [factor for map in self.maps.values() for factor in (map.lora_A, map.lora_B)]
        each = [map.settings.allot.orthogonality * map.orthogonality() for map in self.maps.values()]
        for factor, gradient in zip(factors, torch.autograd.grad(torch.stack(each).sum(), factors), strict=True):
            factor.grad = gradient if factor.grad is None else factor.grad + gradient

    @torch.no_grad()
    def _weigh(self) -> None:
        """Smooth each number's sensitivity |w·∇w| and its uncertainty, by how much it strays (§3.2)."""
        for name, map in self.maps.items():
            new = 1 - map.settings.allot.smoothing
            for factor in FACTORS:
                parameter = getattr(map, factor)
                now = (parameter * parameter.grad).abs()
                mean = self._average(f"{name}.{factor}.sensitivity", now).lerp_(now, new)
                self._average(f"{name}.{factor}.uncertainty", now).lerp_((now - mean).abs(), new)

    def _average(self, name: str, like: Tensor) -> Tensor:
        if name not in self._averages:
            self._averages[name] = torch.zeros_like(like)
        return self._averages[name]

    @torch.no_grad()
    def allot_(self, step: int, steps: int, average: Mapping[str, Tensor]) -> None:
        """After update `step` of `steps`: where an allotment is due, set the singular values beyond the budget to zero.

        Those of the last allotment stay zero from then on, in the averaged weights too, where there are any.
        """
        if not self.maps:
            return
        allot = next(iter(self.maps.values())).settings.allot
        begin = round(allot.hold * steps)
        if step >= settled_step(steps, allot):
            self._alive = self._alive or self._chosen(step, steps, allot)
            self._cut_(self._alive, average)
        else:
            # More steps than were planned bring it back.
            self._alive = {}
            if step > begin and (step - begin) % allot.every == 0:
                self._cut_(self._chosen(step, steps, allot), {})

    def _chosen(self, step: int, steps: int, allot: Allotment) -> dict[str, Tensor]:
        """For each map (rank,) bool: which directions are among the most important of all."""
        first = sum(map.settings.first_rank for map in self.maps.values())
        last = sum(map.settings.rank for map in self.maps.values())
        scores = {name: self.importance(name) for name in self.maps}
        order = torch.cat(list(scores.values())).argsort(descending=True, stable=True)
        chosen = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        chosen[order[: budget(step, steps, first, last, allot)]] = True
        return dict(zip(scores, chosen.split([len(each) for each in scores.values()]), strict=True))

    def importance(self, name: str) -> Tensor:
        """Of each direction of the map called `name` (rank,): its singular value's, and its vectors' means (§3.2)."""
        right, left, value = (
            self._averages[f"{name}.{factor}.sensitivity"] * self._averages[f"{name}.{factor}.uncertainty"]
            for factor in FACTORS
        )
        return value[:, 0] + left.mean(0) + right.mean(1)

    def _cut_(self, alive: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> None:
        for name, chosen in alive.items():
            self.maps[name].lora_E.mul_(chosen[:, None])
            if average:
                average[f"{name}.lora_E"].mul_(chosen[:, None])

    def state(self) -> dict[str, Tensor]:
        """What an interrupted run needs to go on in the same bits."""
        return self._averages | {f"{name}.alive": chosen for name, chosen in self._alive.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave, as copies."""
        own = {name: tensor.clone() for name, tensor in state.items()}
        self._alive = {name: own.pop(f"{name}.alive") for name in self.maps if f"{name}.alive" in own}
        self._averages = own
