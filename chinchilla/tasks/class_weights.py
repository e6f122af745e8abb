"""What the examples of each class count for in training, where classes are of different sizes."""

import math
from collections.abc import Iterable, Mapping
from typing import Literal

from chinchilla.config.errors import UsageError
from chinchilla.data.rows import did_you_mean

SHOWN = 20
"""Names of classes in an error."""


def class_weights(asked: Literal["balanced"] | Mapping[str, float], counts: Mapping[str, int]) -> tuple[float, ...]:
    """The weights of classes of so many examples, in order, scaled so that they are 1 on average over all examples.

    `balanced` gives n / (k·n_c) for the n_c of n examples that each of k classes has, as scikit-learn does, which
    needs no scaling. A class that a table leaves out has the weight 1 beside the others'. Only ratios count, so that
    rates and clipping mean what they mean without weights.

    Raises:
        UsageError: the table names a class that is none.
    """
    if asked == "balanced":
        # A class that training never sees has no label to weigh.
        found = [1 / count if count else 1.0 for count in counts.values()]
    else:
        _refuse_unknown(asked, counts)
        found = [asked.get(name, 1.0) for name in counts]
    total = math.fsum(weight * count for weight, count in zip(found, counts.values(), strict=True))
    mean = total / sum(counts.values())
    return tuple(weight / mean for weight in found)


def _refuse_unknown(asked: Iterable[str], counts: Mapping[str, int]) -> None:
    unknown = [name for name in asked if name not in counts]
    if unknown:
        told = ", ".join(map(repr, list(counts)[:SHOWN])) + (", …" if len(counts) > SHOWN else "")
        hint = did_you_mean(unknown[0], counts)
        raise UsageError(f"train.class_weights: no class {unknown[0]!r}{hint}; the classes are {told}")
