"""A model's tensors by name: its own names, or those of another family."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from chinchilla.config.errors import FaultError, UsageError
from chinchilla.config.shape import Shape

MIN_LAYER_TENSORS = 6
"""Two norms, the projections in and out of attention, and two of the inner layer: what every block has."""

MAX_NUMBERS = 1 << 50
"""In one matrix; more is no model's, and sizes near 2^63 overflow."""

MAX_TABLE = 1 << 27
"""Numbers in a table of positions that is computed, not read; half a GB."""

MAX_HEADER_BYTES = 8 << 20
"""Longer headers take the parser seconds (400,000 entries: 4 s), and no model has one."""


class Piece(NamedTuple):
    """Some rows of one of our tensors, as another family names them."""

    name: str
    rows: int


Layout = Mapping[str, tuple[Piece, ...]]
"""Our name → the other family's tensors, which laid row upon row make ours."""


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tied tensor once, under its first name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor))
    return {name: tensor.detach() for name, tensor in found.values()}


def pieces(model: nn.Module, layout: Layout | None = None) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of `model` as a view, under its own name or under `layout`'s.

    What a layout does not name (heads that only training uses) is left out.
    """
    for name, tensor in own_tensors(model).items():
        if layout is None:
            yield name, tensor
        elif name in layout:
            views = tensor.split([piece.rows for piece in layout[name]])
            yield from ((piece.name, view) for piece, view in zip(layout[name], views, strict=True))


def check_shape(shape: Shape, tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse a shape that cannot be sketched: far more layers than the file has, or sizes that overflow.

    What passes takes no memory on the meta device, where `check_fit` compares it tensor by tensor.

    Raises:
        FaultError: the shape is not that of these tensors.
    """
    layers = shape.num_encoder_layers + shape.num_decoder_layers
    inner = max(shape.num_heads * shape.head_dim * 3, shape.ffn_dim * 2)
    largest = shape.dim * max(shape.vocab_size, shape.max_len, inner)
    if layers * MIN_LAYER_TENSORS > 2 * len(tensors) or largest > MAX_NUMBERS:
        raise FaultError(
            f"{where}: holds {len(tensors):,} tensors, config.json says {layers:,} layers with matrices of up to "
            f"{largest:,} numbers; one of the two is another model's, or damaged: get both anew from one place"
        )
    if shape.position == "sinusoidal" and shape.max_len * shape.dim > MAX_TABLE:
        raise FaultError(
            f"{where}: max_len {shape.max_len:,} makes a table of positions too large; it is damaged, get it anew"
        )


def check_fit(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    where: str,
    layout: Layout | None = None,
    is_spare: Callable[[str], bool] = lambda name: False,
) -> dict[str, Tensor]:
    """Compare `tensors` with what `model` wants, which may be on the meta device; give the wanted views by name.

    `is_spare` says which tensors of the file carry nothing the model needs.

    Raises:
        FaultError: a tensor that is missing, too many, or of another shape or kind of number; it is named.
    """
    unnamed = own_tensors(model).keys() - (own_tensors(model) if layout is None else layout).keys()
    if unnamed:
        raise ValueError(f"the layout does not fill {sorted(unnamed)}")
    wanted = dict(pieces(model, layout))
    missing = [name for name in wanted if name not in tensors]
    surplus = [name for name in tensors if name not in wanted and not is_spare(name)]
    if missing:
        raise FaultError(f"{where}: tensor {missing[0]} is missing ({len(missing)} in all); get the file anew")
    if surplus:
        raise FaultError(
            f"{where}: tensor {surplus[0]} has no place in this model ({len(surplus)} in all); config.json is another's"
        )
    for name, view in wanted.items():
        _check(name, tensors[name], view, where)
    return wanted


@torch.no_grad()
def fill_(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    where: str,
    layout: Layout | None = None,
    is_spare: Callable[[str], bool] = lambda name: False,
) -> None:
    """Copy `tensors` into `model`, in the model's precision.

    Raises:
        FaultError: as `check_fit`.
    """
    for name, view in check_fit(model, tensors, where, layout, is_spare).items():
        view.copy_(tensors[name])


def _check(name: str, given: Tensor, wanted: Tensor, where: str) -> None:
    if given.shape != wanted.shape:
        raise FaultError(
            f"{where}: tensor {name} has shape {tuple(given.shape)}, config.json makes it {tuple(wanted.shape)}"
        )
    same_kind = given.is_floating_point() if wanted.is_floating_point() else given.dtype == wanted.dtype
    if not same_kind:
        raise FaultError(f"{where}: tensor {name} holds {given.dtype}, which cannot stand for {wanted.dtype}")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one file.

    The library checks that each tensor has the bytes its shape needs, within the file, without gaps or overlaps.

    Raises:
        FaultError: the file is truncated or not in the safetensors format, or its header is too large.
    """
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise FaultError(f"{path}: damaged: a header of {header_bytes:,} bytes; at most {MAX_HEADER_BYTES:,}")
        return load_file(path)
    except (SafetensorError, OSError, KeyError) as error:
        raise FaultError(f"{path}: damaged: {error}; get the file anew") from None


def need(config: Mapping[str, Any], key: str, where: str) -> Any:
    """`config[key]`.

    Raises:
        UsageError: it is not there.
    """
    if config.get(key) is None:
        raise UsageError(f"{where}: {key} is missing; this family cannot be read without it")
    return config[key]


def refuse(problems: Mapping[str, bool], where: str) -> None:
    """Stop at what a family cannot carry.

    Raises:
        UsageError: names every problem that holds.
    """
    found = [name for name, holds in problems.items() if holds]
    if found:
        raise UsageError(f"{where}: not supported: {', '.join(found)}")
