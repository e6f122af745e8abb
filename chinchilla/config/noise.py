"""How training varies what it reads, beside images."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat

from chinchilla.config.frozen import Frozen
from chinchilla.config.plan import TaskName

Chance = Annotated[float, Field(ge=0, lt=1)]

READS_TEXT: tuple[TaskName, ...] = ("translate", "summarise", "classify_text")
"""Tasks with a text that is read and not itself predicted."""


class Noise(Frozen):
    """How training varies the texts and the rows of a table that it reads. All is off unless asked for.

    What is to be answered stays as it is, and so do validation and test data.
    """

    drop: Chance = Field(0.0, description="share of a text's tokens that the mask token takes the place of")
    backoff: Chance = Field(0.0, description="chance of a token to be read as the two that it was merged from")
    numbers: NonNegativeFloat = Field(
        0.0, description="deviation of what is added to a table's numbers, as a share of their column's"
    )
    swap: Chance = Field(0.0, description="share of a table's categories that another row's takes the place of")
    missing: Chance = Field(0.0, description="share of a table's cells that are left out")

    @property
    def of_texts(self) -> dict[str, float]:
        """What varies texts, where it is on."""
        return _on({"drop": self.drop, "backoff": self.backoff})

    @property
    def of_tables(self) -> dict[str, float]:
        """What varies tables, where it is on."""
        return _on({"numbers": self.numbers, "swap": self.swap, "missing": self.missing})

    def misplaced(self, task: TaskName) -> str | None:
        """What is on that the task has no use for, and the mend; None where all is well."""
        if self.of_texts and task not in READS_TEXT:
            return (
                f"noise.{next(iter(self.of_texts))}: {task} has no text to vary that it does not predict; leave it out"
            )
        if self.of_tables and task != "classify_table":
            return f"noise.{next(iter(self.of_tables))}: {task} has no table to vary; leave it out"
        return None


def _on(settings: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in settings.items() if value}
