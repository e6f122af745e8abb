"""What answering wrong costs, where there are two classes."""

from typing import Annotated

from pydantic import Field

from chinchilla.config.frozen import Frozen
from chinchilla.config.plan import TaskName

Cost = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Costs(Frozen):
    """What the two errors about the positive class (`data.positive`) cost; right answers cost nothing."""

    false_negative: Cost = Field(description="a positive row that is answered with the other class: a bad loan granted")
    false_positive: Cost = Field(description="another row that is answered with the positive class: a good one refused")

    @property
    def threshold(self) -> float:
        """The chance of the positive class from which that is the cheaper answer: fp / (fp + fn) (Elkan 2001, 1.3)."""
        return 1 / (1 + self.false_negative / self.false_positive)  # their sum might overflow

    def misplaced(self, task: TaskName, positive: str | None, distorting: str | None) -> str | None:
        """Why these costs cannot be minded, and the mend; None where all is well.

        `positive` is the class that is named positive, `distorting` a setting under which chances are not the data's.
        """
        if task != "classify_table":
            return f"costs: {task} puts no rows of a table in classes; leave it out"
        if positive is None:
            # The rarer class, which is else taken, may be another one in other data.
            return "costs: they are of two classes, one of which data.positive names; name it, or leave them out"
        if distorting is not None:
            return f"costs: they ask for chances as they are, and {distorting} bends them; leave out one of the two"
        return None
