"""Numbers that an adapter trains, counted without building the model."""

from math import prod

from chinchilla.config.adapter import Adapter
from chinchilla.config.shape import Shape
from chinchilla.planning.count import parameters


def trained_params(shape: Shape, adapter: Adapter) -> int:
    """Numbers that are trained in a model of this shape: the adapters', and what `adapter.also` names.

    AdaLoRA's are those it begins with; its optimizer keeps them all, though most go in the end.
    """
    total = 0
    for name, sizes in parameters(shape).items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and adapter.adapts(module):
            total += _of_map(adapter, *sizes)
        elif adapter.trains(name):
            total += prod(sizes)
    return total


def _of_map(adapter: Adapter, rows: int, columns: int) -> int:
    match adapter.kind:
        case "lora":
            return adapter.rank * (rows + columns)
        case "adalora":
            return adapter.first_rank * (rows + columns + 1)
        case "bottleneck":
            return 2 * adapter.rank * rows + adapter.rank + rows
