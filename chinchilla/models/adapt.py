"""Adapters: small trained parts beside the frozen linear maps of a model.

An adapted map takes the place of an `nn.Linear` and keeps its parameters under their names, so that files and
checkpoints of the model still fit. What is trained has names of its own:

    decoder.layers.0.attention.qkv.weight    frozen
    decoder.layers.0.attention.qkv.lora_A    (rank, in)
    decoder.layers.0.attention.qkv.lora_B    (out, rank)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla.config.adapter import Adapter
from chinchilla.config.errors import UsageError
from chinchilla.models.bottleneck import Adapted, Bottleneck
from chinchilla.models.quantized import is_quantized
from chinchilla.models.transformer import Transformer


class Lora(Adapted):
    """W + scale · B·A (Hu 2021, arXiv 2106.09685, §4.1): A uniform in ±1/√in as in its code, B zero."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base, dropout)
        self.scale = scale
        self.lora_A = self._trained(rank, base.in_features)
        self.lora_B = self._trained(base.out_features, rank)
        nn.init.uniform_(self.lora_A, -(base.in_features**-0.5), base.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (…, in) → (…, out)."""
        return self.base(x) + F.linear(F.linear(self.dropout(x), self.lora_A) * self.scale, self.lora_B)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank), whose product by `scale` is what comes on top of W."""
        return self.lora_A.detach(), self.lora_B.detach()


class AdaLora(Adapted):
    """W + scale · P·Λ·Q (Zhang 2023, arXiv 2303.10512, §3.1), whose ranks `training.ranks` allots.

    Λ is diagonal, zero at first. P and Q, Gaussian in the paper, begin orthonormal: where its penalty wants them.
    They are named as PEFT does: Q `lora_A` (rank, in), P `lora_B` (out, rank), Λ `lora_E` (rank, 1).
    """

    def __init__(self, base: nn.Linear, settings: Adapter) -> None:
        super().__init__(base, settings.dropout)
        self.settings = settings
        self.scale, rank = settings.scale, settings.first_rank
        self.lora_A = self._trained(rank, base.in_features)
        self.lora_B = self._trained(base.out_features, rank)
        self.lora_E = self._trained(rank, 1)
        nn.init.orthogonal_(self.lora_A)
        nn.init.orthogonal_(self.lora_B)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (…, in) → (…, out)."""
        turned = F.linear(self.dropout(x), self.lora_A) * (self.scale * self.lora_E[:, 0])
        return self.base(x) + F.linear(turned, self.lora_B)

    def orthogonality(self) -> Tensor:
        """‖PᵀP − I‖² + ‖QQᵀ − I‖², Frobenius norms (§3.1); 0 where all directions are orthonormal."""
        unit = torch.eye(len(self.lora_A), device=self.lora_A.device)
        right, left = self.lora_A @ self.lora_A.T - unit, self.lora_B.T @ self.lora_B - unit
        return right.square().sum() + left.square().sum()

    def factors(self) -> tuple[Tensor, Tensor]:
        """As `Lora.factors`, of the ranks that are left: Λ·Q (rank, in) and P (out, rank)."""
        values = self.lora_E.detach()
        alive = values[:, 0] != 0
        return values[alive] * self.lora_A.detach()[alive], self.lora_B.detach()[:, alive]


def adapt_(model: Transformer, adapter: Adapter) -> list[str]:
    """Freeze `model` and put adapters on its maps; give the names of the parameters that are trained from now on.

    Random numbers come from torch's own generator.

    Raises:
        UsageError: the model has an adapter already, is int8, or lacks what the adapter is to be put on.
    """
    refuse_unfit(model)
    maps = {name: map for name, map in model.named_modules() if isinstance(map, nn.Linear) and adapter.adapts(name)}
    _refuse_missing(model, adapter, maps)
    model.requires_grad_(False)
    put_(model, {name: _make(map, adapter) for name, map in maps.items()})
    for name, parameter in model.named_parameters():
        if adapter.trains(name):
            parameter.requires_grad_(True)
    return list(adapter_tensors(model))


def put_(model: Transformer, maps: dict[str, nn.Module]) -> None:
    """Put each module in the place of the one of its name; their noise comes from where the model's does."""
    for name, module in maps.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, module)
    if model.generator is not None:
        model.draw_from(model.generator)


def _make(base: nn.Linear, adapter: Adapter) -> Adapted:
    match adapter.kind:
        case "lora":
            return Lora(base, adapter.rank, adapter.scale, adapter.dropout)
        case "adalora":
            return AdaLora(base, adapter)
        case "bottleneck":
            return Bottleneck(base, adapter.rank, adapter.dropout)


def refuse_unfit(model: Transformer) -> None:
    """Stop at a model that no adapter can be put on.

    Raises:
        UsageError: it is int8, or has one.
    """
    if is_quantized(model):
        raise UsageError("an int8 model takes no adapter: put it on the model before int8, and merge it")
    if adapted(model):
        raise UsageError("the model has an adapter already: merge_ it first, or begin with the model alone")


def _refuse_missing(model: Transformer, adapter: Adapter, maps: dict[str, nn.Linear]) -> None:
    lacking = [target for target in adapter.targets or () if not any(name.endswith(f".{target}") for name in maps)]
    if lacking:
        raise UsageError(f"adapter.targets: this model has no {lacking[0]}; leave it out")
    if "head" in adapter.also and "head.weight" not in dict(model.named_parameters()):
        raise UsageError("adapter.also: this model's head is its embedding table, which stays frozen; leave out head")
    for name, map in maps.items():
        most = min(map.in_features, map.out_features)
        if adapter.kind != "bottleneck" and adapter.first_rank > most:
            raise UsageError(f"adapter.rank: {name} has rank {most} itself, below the adapter's {adapter.first_rank}")


def adapted(model: nn.Module) -> dict[str, Adapted]:
    """The maps that have an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything that is trained, by name: the adapters, and what else their settings name; tied tensors once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def merge_(model: Transformer) -> None:
    """Fold LoRA or AdaLoRA into the weights: the model is then as any other, of its old size, nothing frozen.

    Raises:
        UsageError: there is no adapter, or it is a bottleneck.
    """
    maps = adapted(model)
    if not maps:
        raise UsageError("the model has no adapter to merge")
    put_(model, {name: _merged(map) for name, map in maps.items()})
    model.requires_grad_(True)


def _merged(map: Adapted) -> nn.Linear:
    if not isinstance(map, Lora | AdaLora):
        raise UsageError(
            "a bottleneck cannot be merged: there is an activation inside, which no matrix can stand for; write the "
            "model with it (write_model), or it alone (write_adapter)"
        )
    inner, outer = map.factors()
    rows, columns = map.weight.shape
    plain = nn.Linear(columns, rows, device="meta")
    plain.weight = nn.Parameter(map.weight + (map.scale * outer @ inner).to(map.weight.dtype))
    plain.bias = map.bias
    return plain.train(map.training)
