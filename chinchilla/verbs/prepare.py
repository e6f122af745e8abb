"""From a `Run` to encoded data: splits, codec, batches, and the facts that the planner asks for."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chinchilla.config.errors import UsageError
from chinchilla.config.plan import PACKED, STEMMED, TaskName
from chinchilla.config.run import Run
from chinchilla.tasks.attack import hardened
from chinchilla.tasks.task import Task
from chinchilla.verbs.chats import DIALOGUE
from chinchilla.verbs.histories import RECOMMEND
from chinchilla.verbs.labelled_texts import CLASSIFY_TEXT
from chinchilla.verbs.pictures import CLASSIFY_IMAGE
from chinchilla.verbs.prepared import Kind, Prepared, Tell, spread
from chinchilla.verbs.scenes import DETECT
from chinchilla.verbs.table_rows import CLASSIFY_TABLE
from chinchilla.verbs.texts import GENERATE, SUMMARISE, TRANSLATE
from chinchilla.verbs.transfer import for_codec, read_start

KINDS: Mapping[TaskName, Kind] = {
    "translate": TRANSLATE,
    "summarise": SUMMARISE,
    "generate": GENERATE,
    "dialogue": DIALOGUE,
    "classify_text": CLASSIFY_TEXT,
    "classify_image": CLASSIFY_IMAGE,
    "classify_table": CLASSIFY_TABLE,
    "detect": DETECT,
    "recommend": RECOMMEND,
}


def kind_of(task: TaskName) -> Kind:
    """What is particular to a task's data.

    Raises:
        UsageError: the task is not built yet.
    """
    if task not in KINDS:
        raise UsageError(f"task {task}: not built yet; there are {', '.join(KINDS)}")
    return KINDS[task]


def make_task(run: Run) -> Task:
    """The run's task."""
    return kind_of(run.task).make_task(run)


def prepare(run: Run, tell: Tell = lambda text: None) -> Prepared:
    """Read, split, make the codec (train the tokenizer, say) and encode.

    Raises:
        DataError: data that cannot be used; file, row and mend are named.
        UsageError: a tokenizer file that cannot be used; weights of a class that is none; attention or a row length
            that the task does not have.
    """
    if run.model.attention == "block" and run.task in PACKED:
        raise UsageError(
            f"model.attention: block takes one text a row, and {run.task} packs several; use full or gated"
        )
    if run.model.max_len is not None and run.task in STEMMED:
        raise UsageError(f"model.max_len: {run.task} has a position a column or a patch; leave it out")
    kind = kind_of(run.task)
    start = read_start(run.model.start) if run.model.start is not None else None
    tell("reading data")
    split = kind.split(run)
    tell(f"{len(split.train):,} training, {len(split.valid):,} validation and {len(split.test):,} test examples")
    prepared = kind.prepare(run, split, kind.make_task(run), test_examples(run, split), tell)
    prepared.class_weights(run)  # refused now, not after planning
    if run.attack is not None:
        prepared = replace(prepared, task=hardened(prepared.task, prepared.codec, run.attack))
    return replace(prepared, start=start and for_codec(start, prepared.codec.settings))


def split_examples(run: Run) -> Any:
    """The run's examples in three parts: `train`, `valid` and `test`."""
    return kind_of(run.task).split(run)


def test_examples(run: Run, split: Any = None) -> tuple[Any, ...]:
    """The test examples that the run is scored on."""
    kind = kind_of(run.task)
    return spread(kind.examples(run, kind.split(run) if split is None else split), run.evaluate.max_examples)
