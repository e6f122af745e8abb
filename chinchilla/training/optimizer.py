"""Optimizers: torch's AdamW (Loshchilov 2019); Muon for the matrices inside blocks and for convolutions."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chinchilla.config.plan import Training
from chinchilla.training.muon import Muon
from chinchilla.training.trained import trained
from chinchilla.training.workers import Workers

State = tuple[dict[str, Tensor], list[list[dict[str, Any]]]]


class Optimizer:
    """One or two torch optimizers that step together, with a state of plain tensors and plain values.

    Muon's updates are as large as AdamW's, so that rates carry over from one to the other.
    Embeddings, the head and everything of one dimension stay with AdamW, at `embedding_learning_rate`.
    """

    def __init__(self, model: nn.Module, training: Training, workers: Workers) -> None:
        self.workers = workers
        matrices, rest = split_parameters(model)
        decayed = [p for p in rest if p.dim() > 1]
        plain = [p for p in rest if p.dim() < 2]
        groups = [
            {"params": decayed, "lr": training.embedding_learning_rate, "weight_decay": training.weight_decay},
            {"params": plain, "lr": training.embedding_learning_rate, "weight_decay": 0.0},
        ]
        count = len(workers.models)
        shares: list[list[nn.Parameter]] = []
        dtype = torch.bfloat16 if training.precision == "bf16" else torch.float32
        if training.optimizer == "muon":
            shares = _shares(matrices, count)
        else:
            groups.append({"params": matrices, "lr": training.learning_rate, "weight_decay": training.weight_decay})
        self.parts: list[torch.optim.Optimizer] = [
            Muon(share, training.learning_rate, training.weight_decay, dtype=dtype) for share in shares
        ]
        self.parts += [torch.optim.AdamW(each, betas=(0.9, 0.98), fused=True) for each in _divided(groups, count)]
        self._names = [_names(model, part.param_groups) for part in self.parts]
        self._numbered = [_names(model, [{"params": share}]) for share in shares] + [_names(model, groups)]
        self.peak_rates = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def step(self, scale: float) -> None:
        """One update at `scale` times the peak rates; gradients are let go."""
        for part, peaks in zip(self.parts, self.peak_rates, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * scale
        self.workers.map(_update, self.parts)

    def state(self) -> dict[str, Tensor]:
        """The state as tensors named `parameter.value`, however many parts there are; a step's scalars are tensors."""
        return {
            f"{names[index]}.{name}": torch.as_tensor(value)
            for names, part in zip(self._names, self.parts, strict=True)
            for index, values in part.state_dict()["state"].items()
            for name, value in values.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        found: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            parameter, _, name = self._renamed(key).rpartition(".")
            found.setdefault(parameter, {})[name] = tensor
        for names, part in zip(self._names, self.parts, strict=True):
            own = part.state_dict()
            own["state"] = {index: found[name] for index, name in enumerate(names) if name in found}
            part.load_state_dict(own)

    def _renamed(self, key: str) -> str:
        """The key as it is written now: the first checkpoints had numbers, `part.parameter.value`."""
        old = re.fullmatch(r"([0-9]+)\.([0-9]+)\.(\w+)", key)
        return f"{self._numbered[int(old[1])][int(old[2])]}.{old[3]}" if old else key


def _names(model: nn.Module, groups: list[dict[str, Any]]) -> list[str]:
    """The parameters' names in the order in which an optimizer of these groups numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(each)] for group in groups for each in group["params"]]


def _divided(groups: list[dict[str, Any]], count: int) -> list[list[dict[str, Any]]]:
    """The same groups in `count` shares of about as many numbers, so that each worker's thread updates one."""
    held: list[set[int]] = [set() for _ in range(count)]
    sizes = [0] * count
    every = [parameter for group in groups for parameter in group["params"]]
    for parameter in sorted(every, key=lambda parameter: -parameter.numel()):
        lightest = sizes.index(min(sizes))
        held[lightest].add(id(parameter))
        sizes[lightest] += parameter.numel()
    shares = [[group | {"params": [p for p in group["params"] if id(p) in own]} for group in groups] for own in held]
    return [kept for share in shares if (kept := [group for group in share if group["params"]])]


def _shares(matrices: list[nn.Parameter], count: int) -> list[list[nn.Parameter]]:
    """The matrices in `count` shares of about equal work, so that each worker's thread updates one."""
    ordered = sorted(matrices, key=lambda matrix: -matrix.numel())
    return [share for share in (ordered[index::count] for index in range(count)) if share]


def _update(part: torch.optim.Optimizer) -> None:
    part.step()
    part.zero_grad()


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """What maps hidden states to hidden states (matrices, kernels), and all other parameters; frozen ones in neither.

    Embedding tables and heads are matrices too, but their rows are words: Muon is not meant for them.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in trained(model).items():
        matrix = parameter.dim() == 2 and not name.startswith(("embed.", "head."))
        kernel = parameter.dim() == 4
        (matrices if matrix or kernel else rest).append(parameter)
    return matrices, rest
