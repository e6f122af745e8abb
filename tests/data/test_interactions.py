"""Histories of items: in order of time out of every format, each user's last two held out, rows rightly labelled."""

import logging
from datetime import datetime, timedelta

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla.config.errors import DataError, FaultError, UsageError
from chinchilla.config.run import Data
from chinchilla.data.batches import IGNORED
from chinchilla.data.interactions import history_ids, last_items, split_interactions, train_rows, valid_rows
from chinchilla.data.items import FIRST_ITEM, HINTED, Items
from chinchilla.data.packed_batches import PackedBatches
from chinchilla.data.rows import MalformedError

ROWS = [
    ("ann", "tea", 30),
    ("bob", "cup", 5),
    ("ann", "cup", 10),
    ("bob", "tea", 5),
    ("ann", "pot", 20),
    ("bob", "mug", 4),
]
WANTED = {"ann": ["cup", "pot", "tea"], "bob": ["mug", "cup", "tea"]}


def write(path, rows, delimiter=",", header=("user", "item", "time", "rating")):
    lines = [delimiter.join(header), *(delimiter.join([*map(str, row), "5"]) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def histories_of(split) -> dict[str, list[str]]:
    return {
        user: [split.items.name(number) for number in split.histories[place].tolist()]
        for place, user in enumerate(split.users)
    }


def test_every_format_gives_each_users_items_in_order_of_time(tmp_path):
    paths = [write(tmp_path / f"{n}.csv", ROWS, delimiter) for n, delimiter in enumerate(",;\t")]
    paths.append(write(tmp_path / "a.tsv", ROWS, "\t"))
    start = datetime(2020, 1, 1)
    dated = [(user, item, start + timedelta(days=time)) for user, item, time in ROWS]
    paths.append(write(tmp_path / "dated.csv", dated))
    for n, rows in enumerate((ROWS, dated)):
        records = [dict(zip(("user", "item", "time"), row, strict=True)) for row in rows]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / f"{n}.parquet")
        paths.append(tmp_path / f"{n}.parquet")
    for path in paths:
        split = split_interactions(Data(train=path))
        assert histories_of(split) == WANTED
        assert split.items.names == ("cup", "mug", "pot", "tea")


def test_columns_and_formats_of_others_are_named_by_the_settings(tmp_path):
    header = ("user_id:token", "item_id:token", "timestamp:float", "rating:float")
    path = write(tmp_path / "ml-100k.inter", ROWS, "\t", header)
    data = Data(train=path, format="tsv", user="user_id:token", item="item_id:token", time="timestamp:float")
    assert histories_of(split_interactions(data)) == WANTED
    with pytest.raises(DataError, match=r"no column 'user', there are: user_id:token, .* under \[data\]"):
        split_interactions(Data(train=path, format="tsv"))


def test_users_of_fewer_than_three_items_are_left_out_with_their_items(tmp_path, caplog):
    path = write(tmp_path / "a.csv", [*ROWS, ("eve", "hat", 1), ("eve", "tea", 2)])
    with caplog.at_level(logging.INFO, "chinchilla"):
        split = split_interactions(Data(train=path))
    assert histories_of(split) == WANTED
    assert split.left_out == 1 and "hat" not in split.items.names
    assert "left out 1 of 3 users, who have fewer than three items" in caplog.text
    assert split.popularity.tolist() == [0, 0, 0, 0, 1, 1, 0, 0]  # one item of each user is in the training part
    with pytest.raises(DataError, match="no user has three items"):
        split_interactions(Data(train=write(path, [("eve", "hat", 1), ("eve", "tea", 2)])))


BAD = {
    "no user": (("", "tea", 3), "column user: empty"),
    "no item": (("ann", "", 3), "column item: empty"),
    "no time": (("ann", "tea", ""), "column time: empty"),
    "another time": (("ann", "tea", "noon"), "column time: 'noon' in a column of numbers"),
    "the end of time": (("ann", "tea", "inf"), "column time: an infinite number"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named_and_may_be_left_out(tmp_path, kind):
    row, message = BAD[kind]
    path = write(tmp_path / "a.csv", [*ROWS * 5, row])
    with pytest.raises(DataError, match=rf"a\.csv, row 32: {message}"):
        split_interactions(Data(train=path))
    split = split_interactions(Data(train=path, invalid="skip"))
    assert sum(map(len, histories_of(split).values())) == 30


def test_what_cannot_be_meant_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", [(user, item, "at noon") for user, item, _ in ROWS])
    with pytest.raises(DataError, match=r"column time: neither numbers nor dates; set data\.time"):
        split_interactions(Data(train=path))
    with pytest.raises(UsageError, match=r"data\.test: leave it out; of each user the last two"):
        split_interactions(Data(train=path, test=path))
    names = pyarrow.array([[user] for user, _, _ in ROWS])
    columns = {"user": names, "item": ["a"] * len(ROWS), "time": list(range(len(ROWS)))}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column user: cells of the type list"):
        split_interactions(Data(train=tmp_path / "a.parquet"))
    path.write_text("196\t242\t3\t881250949\n186\t302\t3\t891717742\n")
    with pytest.raises(DataError, match="row 1: numbers where the names of the columns belong"):
        split_interactions(Data(train=path))


HISTORIES = st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=20), min_size=1, max_size=12)


@settings(max_examples=25)
@given(HISTORIES, st.integers(2, 12))
def test_every_item_is_asked_from_those_before_it_and_the_last_two_are_held_out(tmp_path_factory, histories, max_len):
    rows = [(f"u{user}", f"i{item}", at) for user, items in enumerate(histories) for at, item in enumerate(items)]
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("items") / "a.csv"
    split = split_interactions(Data(train=write(path, [rows[n] for n in random.permutation(len(rows))])))
    ids = {user: [split.items.ids([f"i{item}"])[0] for item in items] for user, items in enumerate(histories)}
    train, valid = train_rows(split, max_len), valid_rows(split, max_len)
    for place, user in enumerate(split.users):
        items = ids[int(user[1:])]
        for rows_, held_out in ((train, 2), (valid, 1)):
            where = slice(rows_.ids.offsets[place], rows_.ids.offsets[place + 1])
            given_, labels = rows_.ids.flat[where].tolist(), rows_.labels[where].tolist()
            known = items[: len(items) - held_out]
            assert len(given_) == min(max_len, len(known))
            assert given_ == [1, *known[:-1][len(known) - len(given_) :]]
            assert labels[-1] == known[-1]
            assert labels[:-1] == (known[-len(given_) : -1] if held_out == 2 else [IGNORED] * (len(labels) - 1))
    for (history, last), user in zip(last_items(split), split.users, strict=True):
        assert [*history, last] == ids[int(user[1:])]
        assert history_ids(history, max_len) == [1, *history[max(0, len(history) - max_len + 1) :]]
    batches = PackedBatches(train, max_len, 10, seed=0)
    assert sum(int((batch["labels"] != IGNORED).sum()) for batch in map(batches.batch, batches.order(0))) == sum(
        min(max_len, len(items) - 2) for items in histories
    )
    assert split.popularity.sum() == sum(len(items) - 2 for items in histories)
    assert split.items.vocab_size == FIRST_ITEM + len({item for items in histories for item in items})


ITEMS = Items(names=("cup", "mug", "tea pot"))


def test_unknown_items_are_passed_over_with_a_note_or_refused():
    asked = ITEMS.read_question(["mug", "cop", "cup", 3])
    assert asked.question == ["mug", "cup"]
    assert asked.notes == ("passed over 2 unknown items, 'cop' first",)
    assert ITEMS.ids(asked.question) == [5, 4]
    assert ITEMS.read_question([]).question == []
    with pytest.raises(MalformedError, match=r"no item 'tea pt' \(did you mean 'tea pot'\?\)"):
        ITEMS.read_question(["tea pt"])
    for value in ("cup", {"cup": 1}, [["cup"]]):
        with pytest.raises(MalformedError, match="give the names of items as a list"):
            ITEMS.read_question(value)


def test_among_very_many_items_no_near_one_is_looked_for():
    names = tuple(f"film {number}" for number in range(HINTED))
    with pytest.raises(MalformedError, match=r"no item 'film 7x' \(did you mean 'film 7'"):
        Items(names=names).read_question(["film 7x"])
    with pytest.raises(MalformedError, match="no item 'film 7x'; name items"):
        Items(names=(*names, "another")).read_question(["film 7x"])


def test_items_come_back_from_their_settings():
    assert Items.open(ITEMS.settings, None, "runs/a") == ITEMS
    with pytest.raises(FaultError, match=r"runs/a/config\.json: codec\.items: .*get the file anew"):
        Items.open({"items": 3}, None, "runs/a")
