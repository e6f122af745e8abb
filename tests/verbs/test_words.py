"""What words on the command line come to: a recipe or data, a task that is inferred, a target."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from chinchilla.config.errors import DataError, UsageError
from chinchilla.data.readers import ENDINGS
from chinchilla.verbs.words import DATA_ENDINGS, load_words

ENGLISH = [f"the engine pulls {number} cars over the hill and down to the sea" for number in range(60)]
FRENCH = [f"la locomotive tire {number} voitures par-dessus la colline vers la mer" for number in range(60)]
CLASSES = ["freight" if number % 3 else "people" for number in range(60)]


def csv_file(folder, columns, name="data.csv", delimiter=","):
    rows = [list(columns), *map(list, zip(*columns.values(), strict=True))]
    path = folder / name
    path.write_text("\n".join(delimiter.join(map(str, row)) for row in rows) + "\n", "utf-8")
    return path


def jsonl_file(folder, rows):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def loans(folder):
    return csv_file(
        folder,
        {
            "number": range(1, 61),
            "amount": [1000 + 37 * number % 400 for number in range(60)],
            "purpose": ["car" if number % 2 else "house" for number in range(60)],
            "default": ["yes" if number % 5 == 0 else "no" for number in range(60)],
        },
        "credit.csv",
    )


def found(path, target=None, *settings):
    return load_words([str(path), *settings], "5m", target)


def task_and(loaded, *names):
    return loaded.run.task, *(getattr(loaded.run.data, name) for name in names)


def test_a_table_with_a_target(tmp_path):
    path, told = loans(tmp_path), []
    loaded = load_words([str(path)], "5m", "default", told.append)
    assert task_and(loaded, "train", "label") == ("classify_table", path, "default")
    assert loaded.run.budget.time == 300
    assert loaded.origins["task"] == "inferred"
    assert loaded.origins["data.label"] == "command line"
    # The number of the row tells nothing.
    assert told == [f"task: classify_table, since {path} has 2 columns to tell 'default' by; say task=… for another"]


def test_a_parquet_table(tmp_path):
    path = tmp_path / "credit.parquet"
    table = pyarrow.table({"amount": [1.5, 2.5, 1.5, 2.5] * 5, "default": [True, False, True, False] * 5})
    pyarrow.parquet.write_table(table, path)
    assert task_and(found(path, "default"), "label") == ("classify_table", "default")


def test_a_tsv_table_has_a_header_where_there_is_a_target(tmp_path):
    columns = {"amount": [number % 7 for number in range(60)], "class": CLASSES}
    path = csv_file(tmp_path, columns, "data.tsv", "\t")
    assert task_and(found(path, "class"), "label") == ("classify_table", "class")


def test_columns_named_as_usual_need_no_target(tmp_path):
    path = csv_file(tmp_path, {"amount": [number % 7 for number in range(60)], "target": CLASSES})
    assert task_and(found(path), "label") == ("classify_table", "target")


@pytest.mark.parametrize("target", ["kind", None])
def test_texts_with_a_class(tmp_path, target):
    label = target or "label"
    path = csv_file(tmp_path, {"id": range(60), "body": ENGLISH, label: CLASSES})
    assert task_and(found(path, target), "text", "label") == ("classify_text", "body", label)


def test_texts_beside_other_columns_are_told_to_be_unread(tmp_path):
    path = csv_file(tmp_path, {"cars": [number % 4 for number in range(60)], "body": ENGLISH, "kind": CLASSES})
    told = []
    assert load_words([str(path)], "5m", "kind", told.append).run.task == "classify_table"
    assert "texts, as in body, are not read word by word" in told[0]


@pytest.mark.parametrize(("targets", "task"), [(FRENCH, "translate"), ([text[:25] for text in FRENCH], "summarise")])
def test_texts_with_texts(tmp_path, targets, task):
    path = jsonl_file(tmp_path, [{"en": a, "fr": b} for a, b in zip(ENGLISH, targets, strict=True)])
    assert task_and(found(path, "fr"), "source", "target") == (task, "en", "fr")
    tsv = tmp_path / "pairs.tsv"
    tsv.write_text("".join(f"{a}\t{b}\n" for a, b in zip(ENGLISH, targets, strict=True)), "utf-8")
    assert found(tsv).run.task == task


def test_a_tsv_of_texts_and_classes(tmp_path):
    tsv = tmp_path / "classes.tsv"
    tsv.write_text("".join(f"{a}\t{b}\n" for a, b in zip(ENGLISH, CLASSES, strict=True)), "utf-8")
    assert found(tsv).run.task == "classify_text"


def test_messages_texts_and_histories(tmp_path):
    turns = [{"role": "user", "content": "Where to?"}, {"role": "assistant", "content": "To the sea."}]
    assert found(jsonl_file(tmp_path, [{"messages": turns}] * 3)).run.task == "dialogue"
    assert found(jsonl_file(tmp_path, [{"text": text} for text in ENGLISH])).run.task == "generate"
    taken = {"user": [1, 1, 2], "item": [5, 6, 5], "rating": [3, 4, 5], "time": [10, 20, 30]}
    assert found(csv_file(tmp_path, taken)).run.task == "recommend"
    plain = tmp_path / "book.txt"
    plain.write_text("\n\n".join(ENGLISH), "utf-8")
    assert found(plain).run.task == "generate"


def test_a_folder_of_images_by_class(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    assert task_and(found(tmp_path), "train") == ("classify_image", tmp_path)


def test_what_is_said_goes_before_what_is_inferred(tmp_path):
    columns = {"body": ENGLISH, "subject": [text[:40] for text in FRENCH], "kind": CLASSES}
    path = csv_file(tmp_path, columns)
    assert task_and(found(path, "kind"), "text") == ("classify_text", "body")
    assert task_and(found(path, "kind", "data.text=subject"), "text") == ("classify_text", "subject")
    assert found(path, "kind", "task=classify_table").run.task == "classify_table"


def test_settings_beside_data_name_its_columns_too(tmp_path):
    path = csv_file(tmp_path, {"body": ENGLISH, "cars": [1, 2, 3] * 20, "label": CLASSES, "kind": CLASSES})
    assert task_and(found(path, None, "data.label=kind"), "label") == ("classify_table", "kind")
    loaded = found(path, None, "data.label=kind", 'data.ignore=["cars", "label"]')
    assert task_and(loaded, "text", "label") == ("classify_text", "body", "kind")


def test_numbers_of_texts_that_are_shuffled_tell_nothing(tmp_path):
    path = csv_file(
        tmp_path, {"id": [(number * 977) % 25_013 for number in range(60)], "body": ENGLISH, "kind": CLASSES}
    )
    assert found(path, "kind").run.task == "classify_text"


def test_other_letters_are_a_translation_however_short(tmp_path):
    chinese = [f"机车牵引{number}节车厢翻山到海" for number in range(60)]
    path = jsonl_file(tmp_path, [{"en": a, "zh": b} for a, b in zip(ENGLISH, chinese, strict=True)])
    assert found(path, "zh").run.task == "translate"


def test_texts_in_tsv_have_no_names_of_columns(tmp_path):
    with pytest.raises(UsageError, match="TSV of texts has no names of columns"):
        found(csv_file(tmp_path, {"en": ENGLISH, "fr": FRENCH}, "data.tsv", "\t"), "fr")


def test_half_a_character_and_names_that_are_none(tmp_path):
    path = tmp_path / "cut.jsonl"
    path.write_text('{"text": "a \\ud83d"}\n' * 3, "utf-8")
    assert found(path).run.task == "generate"
    for name in ("~nobody-at-all/x", "x" * 300):
        with pytest.raises(UsageError):
            found(name)


def test_a_target_over_a_recipe(tmp_path):
    path = loans(tmp_path)
    recipe = tmp_path / "loans.toml"
    recipe.write_text('task = "classify_table"\n[data]\ntrain = "credit.csv"\nlabel = "purpose"\n', "utf-8")
    assert task_and(found(recipe, "default"), "train", "label") == ("classify_table", path, "default")


def test_a_malformed_row_is_left_to_who_reads_the_data(tmp_path):
    path = loans(tmp_path)
    path.write_text(path.read_text("utf-8") + "61,too,few\n", "utf-8")
    assert found(path, "default").run.task == "classify_table"


@pytest.mark.parametrize(
    ("columns", "target", "told"),
    [
        ({"amount": [1, 2, 3] * 20, "kind": CLASSES}, None, r"which column is to be told\?.*amount, kind"),
        ({"number": range(60), "kind": CLASSES}, "kind", "no column to tell 'kind' by; say task="),
    ],
)
def test_columns_that_tell_no_task(tmp_path, columns, target, told):
    with pytest.raises(UsageError, match=told):
        found(csv_file(tmp_path, columns), target)


def test_a_target_that_is_no_column(tmp_path):
    with pytest.raises(DataError, match=r"no column 'defualt' \(did you mean 'default'\?\).*--target"):
        found(loans(tmp_path), "defualt")


def test_numbers_in_jsonl_are_no_table(tmp_path):
    path = jsonl_file(tmp_path, [{"amount": number % 7, "kind": CLASSES[number]} for number in range(60)])
    with pytest.raises(UsageError, match="no column to tell 'kind' by; tables are read from CSV, TSV and Parquet"):
        found(path, "kind")


def test_a_target_that_has_no_column(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(UsageError, match="is a set of images, which has no column 'kind'"):
        found(tmp_path, "kind")
    with pytest.raises(UsageError, match="recommend has no column that is to be told"):
        found(loans(tmp_path), "default", "task=recommend")
    plain = tmp_path / "book.txt"
    plain.write_text("a\n", "utf-8")
    with pytest.raises(UsageError, match="is a plain text"):
        found(plain, "kind")


def test_a_folder_of_something_else(tmp_path):
    loans(tmp_path)
    with pytest.raises(UsageError, match="a folder without a folder of images for each class"):
        found(tmp_path)


def test_data_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        found(tmp_path / "credit.csv", "default")
    with pytest.raises(DataError, match="no such file"):
        found(tmp_path / "credit.jsonl")


def test_words_are_data_by_the_endings_that_are_read():
    assert {*DATA_ENDINGS} == {*ENDINGS, ".npz"}


def test_two_recipes_or_data(tmp_path):
    with pytest.raises(UsageError, match="give one recipe or one file of data, not 2"):
        load_words([str(loans(tmp_path)), "recipe.toml"], None, None)


def test_the_command_line_says_what_it_took_the_data_for(tmp_path, chinchilla):
    code, out, err = chinchilla("train", loans(tmp_path), "--target", "default", "--budget", "5m", "--dry-run")
    assert code == 0, err
    assert "task: classify_table, since" in err
    assert 'task = "classify_table"  # inferred' in out
    assert 'label = "default"  # command line' in out
    code, _, err = chinchilla("train", "--resume", tmp_path, "--target", "default")
    assert code == 2
    assert "--resume takes its settings from the run" in err
