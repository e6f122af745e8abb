"""The data of recommendation: each user's items in order of time, packed; the last two held out."""

from dataclasses import dataclass
from typing import Any

from chinchilla.config.run import Run
from chinchilla.data.interactions import ItemSplit, last_items, split_interactions, train_rows, valid_rows
from chinchilla.data.items import Items
from chinchilla.data.packed_batches import Aligned, PackedBatches
from chinchilla.planning.search import Facts
from chinchilla.tasks.recommend import Recommend
from chinchilla.tasks.task import Task
from chinchilla.verbs.prepared import Kind, Prepared, Tell
from chinchilla.verbs.texts import fitting_row


@dataclass(frozen=True, eq=False)
class Users:
    """The three parts of a leave-one-out split: the same users in each."""

    items: ItemSplit

    @property
    def train(self) -> tuple[str, ...]:
        """The users whose histories are trained on."""
        return self.items.users

    valid = test = train


def _split(run: Run) -> Users:
    return Users(split_interactions(run.data))


def _examples(run: Run, split: Users) -> tuple[tuple[list[str], str], ...]:
    items = split.items.items
    return tuple(
        ([items.name(number) for number in history], items.name(last)) for history, last in last_items(split.items)
    )


def _prepare(run: Run, split: Users, task: Task, test: tuple[Any, ...], tell: Tell) -> Prepared:
    items = split.items.items
    tell(f"{len(items.names):,} items")
    row_len = run.model.max_len or fitting_row(split.items.histories.lengths)
    train, valid = train_rows(split.items, row_len), valid_rows(split.items, row_len)

    def make(rows: Aligned, labels: int, seed: int, like: PackedBatches | None = None) -> PackedBatches:
        return PackedBatches(rows, row_len, labels, seed, "target", like=like)

    batches = make(train, 4096, 0)
    facts = Facts(
        task=run.task,
        vocab_size=items.vocab_size,
        unique_tokens=batches.unique_tokens,
        num_examples=len(split.train),
        mean_source_len=0,
        mean_target_len=row_len,
        max_len=row_len,
        padding=batches.padding,
        beam_size=1,
        bytes_per_token=4.0,
    )
    return Prepared(run, task, items, train, valid, test, row_len, facts, make)


RECOMMEND = Kind(
    split=_split,
    prepare=_prepare,
    examples=_examples,
    make_task=lambda run: Recommend(),
    open_codec=Items.open,
)
