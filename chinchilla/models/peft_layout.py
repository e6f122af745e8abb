"""What PEFT's files say of an adapter, made from our modules and made into them.

Our fused maps are several in other families: for a Llama `attention.qkv` is q_proj, k_proj and v_proj, which share A
and each have their rows of B. The other way, parts that share A are one LoRA of that rank, and parts that do not are
one whose B is block-diagonal. AdaLoRA is written as the LoRA that it has come down to. PEFT knows no bottleneck
adapters: theirs is a `peft_type` of our own, under our own names.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError
from torch import Tensor, nn

from chinchilla.config.adapter import Adapter
from chinchilla.config.errors import FaultError, UsageError
from chinchilla.config.shape import Shape
from chinchilla.models import llama, marian
from chinchilla.models.adapt import AdaLora, Lora, adapted, adapter_tensors
from chinchilla.models.bottleneck import Bottleneck
from chinchilla.models.hub import FAMILIES
from chinchilla.models.transformer import Transformer
from chinchilla.models.weights import Layout, Piece

LORA = "LORA"
BOTTLENECK = "BOTTLENECK"

FamilyName = Literal["llama", "marian"]
Settings = TypeVar("Settings", bound=BaseModel)

_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")
_NARROW = re.compile(r"(.+)\.adapter_(?:down|up)(?:_bias)?")
_PLAIN_KEY = re.compile(r"[\w.]+")

_HARMLESS = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "megatron_core",
    "megatron_config", "qalora_group_size", "eva_config", "velora_config", "ensure_weight_tying",
}  # fmt: skip
"""Settings of PEFT's that change nothing once the tensors are there."""

_OFF: tuple[Any, ...] = (None, False, 0, "", [], {})
_NEUTRAL = {"bias": ("none",), "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva")}
"""Values of its other settings that leave the formula alone; some ways to begin (PiSSA) change the model's weights."""


class Content(NamedTuple):
    """An adapter's settings and its tensors, named as in its file but for the prefix."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class Reading(NamedTuple):
    """Adapted maps to put on a model, and tensors that replace its own, both by the model's names."""

    maps: dict[str, nn.Module]
    whole: dict[str, Tensor]


class _Part(NamedTuple):
    """What comes on top of one matrix: scale · outer @ inner, `inner` (rank, in) and `outer` (rows, rank)."""

    inner: Tensor
    outer: Tensor
    scale: float


class _Family(NamedTuple):
    """PEFT's name of what a family's model does, our names in the family's, and what refuses a shape it lacks."""

    task_type: str
    layout: Callable[[Shape], Layout]
    write_config: Callable[[Shape], object]


_WRITTEN: dict[FamilyName, _Family] = {
    "llama": _Family("CAUSAL_LM", llama.layout, llama.write_config),
    "marian": _Family("SEQ_2_SEQ_LM", marian.layout, marian.write_config),
}


class _LoraSettings(BaseModel):
    """What counts of PEFT's `LoraConfig`."""

    model_config = ConfigDict(allow_inf_nan=False)

    r: PositiveInt
    lora_alpha: PositiveFloat
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rank_pattern: dict[str, PositiveInt] = {}
    alpha_pattern: dict[str, PositiveFloat] = {}
    use_rslora: bool = False

    def rank(self, module: str) -> int:
        """The rank of a module's factors."""
        return _matching(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """α/r, or α/√r where the file says rsLoRA (Kalajdzievski 2023, arXiv 2312.03732)."""
        rank = self.rank(module)
        return _matching(self.alpha_pattern, module, self.lora_alpha) / (rank**0.5 if self.use_rslora else rank)


class _BottleneckSettings(BaseModel):
    """Our own."""

    model_config = ConfigDict(allow_inf_nan=False)

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


def _matching(pattern: Mapping[str, Any], module: str, absent: Any) -> Any:
    return next((value for key, value in pattern.items() if f".{module}".endswith(f".{key}")), absent)


def lora_content(model: Transformer, family: FamilyName | None) -> Content:
    """LoRA and AdaLoRA, in our own names or a family's.

    Raises:
        UsageError: the adapter is still zero, or the family lacks a part of the model.
    """
    if family is not None:
        _WRITTEN[family].write_config(model.shape)
    layout = _own_layout(model) if family is None else _WRITTEN[family].layout(model.shape)
    parts = _parts(model, layout)
    if not parts:
        raise UsageError("the adapter is zero throughout, as before training: there is nothing to write")
    whole = _whole(model, layout, family)
    ranks = {module: len(part.inner) for module, part in parts.items()}
    alphas = {module: part.scale * len(part.inner) for module, part in parts.items()}
    rank, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, alphas))
    config = {
        "peft_type": LORA,
        "task_type": None if family is None else _WRITTEN[family].task_type,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: own for module, own in ranks.items() if own != rank},
        "alpha_pattern": {module: own for module, own in alphas.items() if own != alpha},
        "lora_dropout": _dropout(model),
        "bias": "none",
        "target_modules": list(parts),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in whole}) or None,
    }
    inner = {f"{module}.lora_A.weight": part.inner for module, part in parts.items()}
    outer = {f"{module}.lora_B.weight": part.outer for module, part in parts.items()}
    return Content(config, inner | outer | whole)


def bottleneck_content(model: Transformer, family: FamilyName | None) -> Content:
    """Bottlenecks, in our own names.

    Raises:
        UsageError: another family's names are asked for.
    """
    if family is not None:
        raise UsageError(f"a bottleneck adapter has no place in a {family}: leave out the family")
    return Content({"peft_type": BOTTLENECK, "dropout": _dropout(model)}, adapter_tensors(model))


def _dropout(model: Transformer) -> float:
    return next(iter(adapted(model).values())).dropout.rate


def _own_layout(model: Transformer) -> Layout:
    return {name: (Piece(name, len(tensor)),) for name, tensor in model.named_parameters()}


def _parts(model: Transformer, layout: Layout) -> dict[str, _Part]:
    """By the layout's names, what LoRA adds to each matrix; without those that have come down to rank 0."""
    parts: dict[str, _Part] = {}
    for name, map in adapted(model).items():
        if isinstance(map, Lora | AdaLora) and len(map.factors()[0]):
            inner, outer = map.factors()
            for piece, rows in _split(outer, layout[f"{name}.weight"]):
                parts[piece.removesuffix(".weight")] = _Part(inner, rows, map.scale)
    return parts


def _whole(model: Transformer, layout: Layout, family: FamilyName | None) -> dict[str, Tensor]:
    """What was trained beside the adapters, in the layout's names."""
    inside = {f"{name}.{leaf}" for name, map in adapted(model).items() for leaf, _ in map.named_parameters()}
    found: dict[str, Tensor] = {}
    for name, tensor in adapter_tensors(model).items():
        if name not in inside:
            if name not in layout:
                raise UsageError(f"{name} was trained too, and has no place in a {family}: leave out the family")
            found |= dict(_split(tensor, layout[name]))
    return found


def _split(tensor: Tensor, pieces: Sequence[Piece]) -> list[tuple[str, Tensor]]:
    """The layout's names, and a view of each one's rows."""
    views = tensor.split([piece.rows for piece in pieces])
    return [(piece.name, view) for piece, view in zip(pieces, views, strict=True)]


def read_lora(model: Transformer, content: Content, where: str) -> Reading:
    """The LoRA of a file, checked against `model`, which is not changed.

    Raises:
        UsageError: a setting that is not supported; it is named.
        FaultError: a damaged setting, or a tensor that does not fit; it is named.
    """
    settings = _lora_settings(content.config, where)
    factors = {name: _FACTOR.fullmatch(name) for name in content.tensors}
    modules = sorted({match[1] for match in factors.values() if match})
    others = {name: content.tensors[name] for name, match in factors.items() if match is None}
    layout = _layout_of(model, {f"{module}.weight" for module in modules} | others.keys(), where)
    parts = {module: _part(content.tensors, module, settings, where) for module in modules}
    maps: dict[str, nn.Module] = {}
    for name, pieces in layout.items():
        found = [parts.get(piece.name.removesuffix(".weight")) for piece in pieces]
        if any(found):
            base = _linear(model, name, where)
            joined = _joined(found, pieces, base, f"{where}: {name}")
            maps[name.removesuffix(".weight")] = _lora(base, joined, settings.lora_dropout)
    return Reading(maps, _replaced(model, layout, others, where))


def _lora_settings(config: Mapping[str, Any], where: str) -> _LoraSettings:
    settings = _validated(_LoraSettings, config, where)
    known = _HARMLESS | _LoraSettings.model_fields.keys()
    foreign = sorted(
        name for name, value in config.items() if name not in known and value not in _NEUTRAL.get(name, _OFF)
    )
    # A pattern from elsewhere is never run: it can be made to take forever.
    patterns = [key for key in (*settings.rank_pattern, *settings.alpha_pattern) if not _PLAIN_KEY.fullmatch(key)]
    if foreign or patterns:
        raise UsageError(
            f"{where}: not supported: {(foreign or [f'the pattern {patterns[0]!r}'])[0]}; merge it in PEFT"
        )
    return settings


def _validated(kind: type[Settings], config: Mapping[str, Any], where: str) -> Settings:
    try:
        return kind.model_validate(config)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise FaultError(f"{where}: adapter_config.json: {key}: {problem['msg']}") from None


def _layout_of(model: Transformer, names: set[str], where: str) -> Layout:
    """Our own names, or the first family's that has a place for all of `names`."""
    layouts = [_own_layout(model), *(family.layout(model.shape) for family in FAMILIES.values())]
    missing = [names - {piece.name for pieces in layout.values() for piece in pieces} for layout in layouts]
    fewest = min(range(len(layouts)), key=lambda index: len(missing[index]))
    if missing[fewest]:
        name = min(missing[fewest])
        raise FaultError(f"{where}: {name} has no place in this model ({len(missing[fewest])} in all); it is another's")
    return layouts[fewest]


def _part(tensors: Mapping[str, Tensor], module: str, settings: _LoraSettings, where: str) -> _Part:
    pair = [tensors.get(f"{module}.lora_{factor}.weight") for factor in "AB"]
    inner, outer = pair
    if inner is None or outer is None:
        raise FaultError(f"{where}: {module} has only one of lora_A and lora_B; get the file anew")
    rank = settings.rank(module)
    if inner.dim() != 2 or outer.dim() != 2 or not len(inner) == outer.shape[1] == rank:
        found = f"{tuple(inner.shape)} and {tuple(outer.shape)}"
        raise FaultError(f"{where}: lora_A and lora_B of {module} are {found}; adapter_config.json says rank {rank}")
    return _Part(inner, outer, settings.scale(module))


def _linear(model: Transformer, name: str, where: str) -> nn.Linear:
    module = model.get_submodule(name.rpartition(".")[0])
    if not isinstance(module, nn.Linear) or not name.endswith(".weight"):
        raise UsageError(f"{where}: not supported: LoRA on {name.removesuffix('.weight')}; merge it in PEFT")
    return module


def _joined(parts: Sequence[_Part | None], pieces: Sequence[Piece], base: nn.Linear, where: str) -> _Part:
    """One addition for the fused map that `pieces` make up; a part that is not there adds nothing."""
    given = [part for part in parts if part is not None]
    first, columns = given[0], base.in_features
    sizes = [(piece.rows, columns) if part is None else (len(part.outer), part.inner.shape[1])
             for part, piece in zip(parts, pieces, strict=True)]  # fmt: skip
    if sizes != [(piece.rows, columns) for piece in pieces] or sum(rows for rows, _ in sizes) != base.out_features:
        raise FaultError(f"{where}: lora_A and lora_B make {sizes}, which do not fit {tuple(base.weight.shape)}")
    shared = all(torch.equal(part.inner, first.inner) for part in given)
    absent = len(first.inner) if shared else 0
    outers = [
        first.outer.new_zeros(rows, absent) if part is None else part.outer * (part.scale / first.scale)
        for part, (rows, _) in zip(parts, sizes, strict=True)
    ]
    if shared:
        return _Part(first.inner, torch.cat(outers), first.scale)
    return _Part(torch.cat([part.inner for part in given]), torch.block_diag(*outers), first.scale)


@torch.no_grad()
def _lora(base: nn.Linear, part: _Part, dropout: float) -> Lora:
    lora = Lora(base, len(part.inner), part.scale, dropout)
    lora.lora_A.copy_(part.inner)
    lora.lora_B.copy_(part.outer)
    return lora


def _replaced(model: Transformer, layout: Layout, given: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """By our own names, the tensors that take the place of the model's: norms and the head, whole."""
    own, replaceable = dict(model.named_parameters()), Adapter(also=("norms", "head"))
    left, found = dict(given), {}
    for name, pieces in layout.items():
        if name in own and replaceable.trains(name) and all(piece.name in left for piece in pieces):
            taken = [left.pop(piece.name) for piece in pieces]
            sizes = [tuple(view.shape) for _, view in _split(own[name], pieces)]
            if [tuple(tensor.shape) for tensor in taken] != sizes:
                raise FaultError(f"{where}: {pieces[0].name} is not of {sizes[0]}, as in this model; it is another's")
            found[name] = torch.cat(taken)
    if left:
        raise UsageError(f"{where}: not supported: {min(left)}, trained whole ({len(left)} in all); merge it in PEFT")
    return found


def read_bottlenecks(model: Transformer, content: Content, where: str) -> Reading:
    """The bottlenecks of a file, checked against `model`, which is not changed.

    Raises:
        UsageError, FaultError: as `read_lora`.
    """
    settings = _validated(_BottleneckSettings, content.config, where)
    narrow = {name: match[1] for name in content.tensors if (match := _NARROW.fullmatch(name))}
    others = {name: tensor for name, tensor in content.tensors.items() if name not in narrow}
    modules = sorted(set(narrow.values()))
    layout = _layout_of(model, {f"{module}.weight" for module in modules} | others.keys(), where)
    maps: dict[str, nn.Module] = {}
    for module in modules:
        base = _linear(model, f"{module}.weight", where)
        maps[module] = _bottleneck(base, module, content.tensors, settings.dropout, where)
    return Reading(maps, _replaced(model, layout, others, where))


@torch.no_grad()
def _bottleneck(base: nn.Linear, module: str, tensors: Mapping[str, Tensor], dropout: float, where: str) -> Bottleneck:
    down = tensors.get(f"{module}.adapter_down")
    made = Bottleneck(base, 0 if down is None or down.dim() == 0 else len(down), dropout)
    for leaf, parameter in made.named_parameters():
        if leaf.startswith("adapter_"):
            tensor = tensors.get(f"{module}.{leaf}")
            if tensor is None or tensor.shape != parameter.shape:
                found = "missing" if tensor is None else f"of {tuple(tensor.shape)}"
                raise FaultError(f"{where}: {module}.{leaf} is {found}, not of {tuple(parameter.shape)}")
            parameter.copy_(tensor)
    return made
