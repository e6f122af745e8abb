"""What an adapter trains, counted without building the model."""

from collections.abc import Iterator
from math import prod

from chinchilla.config.adapter import Adapter
from chinchilla.config.shape import Shape
from chinchilla.planning.count import parameters

Sizes = tuple[int, ...]


def trained_parameters(shape: Shape, adapter: Adapter) -> dict[str, Sizes]:
    """Name and sizes of each tensor that is trained in a model of this shape: the adapters', and what it names beside.

    AdaLoRA's are those it begins with; its optimizer keeps them all, though most go in the end.
    """
    found: dict[str, Sizes] = {}
    for name, sizes in parameters(shape).items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and adapter.adapts(module):
            found |= {f"{module}.{part}": each for part, each in _beside(adapter, *sizes)}
        elif adapter.trains(name):
            found[name] = sizes
    return found


def trained_params(shape: Shape, adapter: Adapter) -> int:
    """Numbers that are trained."""
    return sum(map(prod, trained_parameters(shape, adapter).values()))


def added_params(shape: Shape, adapter: Adapter) -> int:
    """Numbers that stand beside the model's own while it is trained, and afterwards where they cannot be merged."""
    own = parameters(shape)
    return sum(prod(sizes) for name, sizes in trained_parameters(shape, adapter).items() if name not in own)


def kept_params(shape: Shape, adapter: Adapter | None) -> int:
    """Numbers that an adapter adds to the model that is written."""
    return added_params(shape, adapter) if adapter is not None and adapter.kind == "bottleneck" else 0


def _beside(adapter: Adapter, rows: int, columns: int) -> Iterator[tuple[str, Sizes]]:
    rank = adapter.first_rank
    if adapter.kind == "bottleneck":
        yield from (("adapter_down", (rank, rows)), ("adapter_down_bias", (rank,)))
        yield from (("adapter_up", (rows, rank)), ("adapter_up_bias", (rows,)))
    else:
        yield from (("lora_A", (rank, columns)), ("lora_B", (rows, rank)))
    if adapter.kind == "adalora":
        yield "lora_E", (rank, 1)
