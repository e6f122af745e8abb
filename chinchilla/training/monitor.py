"""What training tells while it runs, and the trackers that pass it on."""

import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from chinchilla.config.errors import UsageError

log = logging.getLogger("chinchilla")


class Monitor(Protocol):
    """Who is told of progress: the live bar, a tracker, or nobody."""

    def step(self, step: int, loss: float, tokens_per_s: float, peak_fraction: float, time_left_s: float) -> None:
        """One logged step; `peak_fraction` is of the machine's measured peak."""

    def note(self, text: str) -> None:
        """A line worth keeping: a validation, a checkpoint, a new plan."""

    def total(self, steps: int) -> None:
        """A new plan has this many steps in all."""


class Silent:
    """A monitor that tells nobody."""

    def step(self, step: int, loss: float, tokens_per_s: float, peak_fraction: float, time_left_s: float) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def total(self, steps: int) -> None:
        """Nothing."""


class Tracker(Protocol):
    """Somewhere metrics are sent as well as to the run folder."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send one step's metrics."""

    def close(self) -> None:
        """Send what is left."""


class TensorBoard:
    """TensorBoard event files in `folder`; where its disk fails it is given up with a warning, and the run goes on."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write scalars."""
        with self._given_up():
            for name, value in values.items() if self._writer else ():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the file."""
        with self._given_up():
            if self._writer:
                self._writer.close()

    @contextmanager
    def _given_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Its writing thread has ended by then, and cannot be begun anew.
            self._writer = None
            log.warning("tensorboard gets no more of this run: %s; metrics.jsonl holds all of it", error)


class WeightsAndBiases:
    """A W&B run; its files go to `folder/wandb`."""

    def __init__(self, folder: Path, name: str) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(project="chinchilla", name=name, dir=str(folder))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send scalars."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class MLflow:
    """An MLflow run, on the server that MLflow itself is set up for."""

    def __init__(self, name: str) -> None:
        import mlflow

        self._mlflow: Any = mlflow
        mlflow.start_run(run_name=name)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send scalars."""
        self._mlflow.log_metrics(values, step=step)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


def check_trackers(names: Sequence[str]) -> None:
    """Look for the asked-for trackers' packages, before anything is spent.

    Raises:
        UsageError: a package is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"train.trackers: {name} is not installed; pip install 'chinchilla-ml[{name}]'")


def open_trackers(names: Sequence[str], run: Path) -> list[Tracker]:
    """The asked-for trackers; none unless asked.

    Raises:
        UsageError: a tracker's package is not installed.
    """
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(run / "tensorboard"),
        "wandb": lambda: WeightsAndBiases(run, run.name),
        "mlflow": lambda: MLflow(run.name),
    }
    trackers: list[Tracker] = []
    for name in names:
        try:
            trackers.append(makers[name]())
        except ImportError as error:
            for opened in trackers:
                opened.close()
            raise UsageError(
                f"train.trackers: {name} is not installed ({error.name}); pip install 'chinchilla-ml[{name}]'"
            ) from None
    return trackers
