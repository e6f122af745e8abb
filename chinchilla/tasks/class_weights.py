"""What the examples of each class count for in training, where classes are of different sizes."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from chinchilla.config.errors import UsageError
from chinchilla.data.classes import Classes
from chinchilla.data.rows import did_you_mean


def class_weights(
    asked: Literal["balanced"] | Mapping[str, float], classes: Classes, counts: Sequence[int]
) -> tuple[float, ...]:
    """The weights of all classes in order, scaled so that they are 1 on average over the training examples.

    `balanced` gives n / (k·n_c) for the n_c of n examples that each of k classes has, as scikit-learn does, which
    needs no scaling. A class that a table leaves out has the weight 1 beside the others'. Only ratios count, so that
    rates and clipping mean what they mean without weights.

    Raises:
        UsageError: the table names a class that is none.
    """
    if asked == "balanced":
        # A class that training never sees has no label to weigh.
        found = [1 / count if count else 1.0 for count in counts]
    else:
        _refuse_unknown(asked, classes)
        found = [asked.get(name, 1.0) for name in classes.names]
    mean = math.fsum(weight * count for weight, count in zip(found, counts, strict=True)) / sum(counts)
    return tuple(weight / mean for weight in found)


def _refuse_unknown(asked: Mapping[str, float], classes: Classes) -> None:
    unknown = [name for name in asked if classes.number(name) < 0]
    if unknown:
        raise UsageError(
            f"train.class_weights: no class {unknown[0]!r}{did_you_mean(unknown[0], classes.names)}; the classes are "
            f"{', '.join(map(repr, classes.names[:20]))}{', …' if len(classes.names) > 20 else ''}"
        )
