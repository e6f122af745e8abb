"""Weights of classes in a recipe: a word or a table of any names, written and read back, refused in one sentence."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla.config.errors import UsageError
from chinchilla.config.load import Loaded, load_run, to_toml

ENOUGH = ["task=classify_table", "data.train=a.csv", "budget.time=10m"]
RECIPE = 'task = "classify_table"\n[data]\ntrain = "a.csv"\n[budget]\ntime = "10m"\n'


def test_a_word_or_a_table_in_a_recipe_or_on_the_command_line(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE + '[train]\nsteps = 9\n[train.class_weights]\n">50K" = 5\n"0.5" = 1.5\n')
    loaded = load_run(recipe, [])
    assert loaded.run.train.class_weights == {">50K": 5.0, "0.5": 1.5}
    assert loaded.origins["train.class_weights"] == str(recipe)
    assert load_run(recipe, ["train.class_weights={ a = 2 }"]).run.train.class_weights == {"a": 2.0}
    assert load_run(recipe, ["train.class_weights=balanced"]).run.train.class_weights == "balanced"
    assert load_run(None, ENOUGH).run.train.class_weights is None


@settings(max_examples=60)
@given(st.dictionaries(st.text(), st.floats(1e-300, 1e300), min_size=1))
def test_any_names_survive_the_run_folder(tmp_path_factory, table):
    run = load_run(None, ENOUGH).run
    run = run.model_copy(update={"train": run.train.model_copy(update={"class_weights": table})})
    path = tmp_path_factory.mktemp("run") / "run.toml"
    try:
        path.write_bytes(to_toml(Loaded(run, {})).encode())
    except UnicodeEncodeError:
        return  # no file of data has such a name either
    assert load_run(path, []).run.train == run.train


@pytest.mark.parametrize(
    "value", ["balance", "3", "true", "[1]", "{ a = 0 }", "{ a = -1 }", '{ a = "b" }', "{ a = inf }"]
)
def test_what_is_no_weights_is_refused_in_one_line(value):
    with pytest.raises(
        UsageError, match=r'^command line: train.class_weights: (write "balanced", or a table|true is)'
    ) as e:
        load_run(None, [*ENOUGH, f"train.class_weights={value}"])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("setting", ["train.class_weights=balanced", "train.focal_gamma=2"])
@pytest.mark.parametrize("task", ["translate", "recommend", "detect"])
def test_only_classifiers_have_classes_to_weigh(task, setting):
    with pytest.raises(UsageError, match=rf"^command line: train\.\w+: {task} puts nothing in classes; leave it out$"):
        load_run(None, [*ENOUGH, f"task={task}", setting])


def test_only_classifiers_are_attacked():
    with pytest.raises(UsageError, match="attack: translate puts nothing in classes, and nothing else is attacked"):
        load_run(None, [*ENOUGH, "task=translate", "attack.eps=0.1"])


def test_focal_loss_and_smoothed_labels_exclude_each_other():
    with pytest.raises(
        UsageError, match="focal_gamma: focal loss is of one right answer; leave out it or label_smooth"
    ):
        load_run(None, [*ENOUGH, "train.focal_gamma=2", "train.label_smoothing=0.1"])
    assert load_run(None, [*ENOUGH, "train.focal_gamma=2", "train.label_smoothing=0"]).run.train.focal_gamma == 2
