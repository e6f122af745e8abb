"""Costs of errors in a recipe: read and written back, and refused where nothing can mind them."""

import pytest

from chinchilla.config.costs import Costs
from chinchilla.config.errors import UsageError
from chinchilla.config.load import load_run, to_toml

ENOUGH = ["task=classify_table", "data.train=a.csv", "data.positive=bad", "budget.time=10m"]
COSTS = ["costs.false_negative=5", "costs.false_positive=1"]


def test_costs_survive_the_run_folder(tmp_path):
    loaded = load_run(None, [*ENOUGH, *COSTS])
    assert loaded.run.costs == Costs(false_negative=5, false_positive=1)
    (tmp_path / "run.toml").write_text(to_toml(loaded))
    assert load_run(tmp_path / "run.toml").run == loaded.run
    assert load_run(None, ENOUGH).run.costs is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["costs.false_negative=5"], r"costs\.false_positive is missing: set"),
        (["costs=5"], r"costs is a table; set one of costs\.false_negative, costs\.false_positive"),
        ([*COSTS[:1], "costs.false_positive=0"], r"costs\.false_positive: .*greater than 0"),
        ([*COSTS, "task=classify_text"], "costs: classify_text puts no rows of a table in classes; leave it out"),
        ([*COSTS, "task=translate"], "costs: translate puts no rows"),
        ([*COSTS, "train.class_weights=balanced"], r"costs: .* and train\.class_weights bends them"),
        ([*COSTS, "train.focal_gamma=2"], r"train\.focal_gamma bends them; leave out one of the two"),
        ([*COSTS, "train.label_smoothing=0.1"], r"train\.label_smoothing bends them"),
    ],
)
def test_costs_that_cannot_be_minded_are_refused(settings: list[str], message: str):
    with pytest.raises(UsageError, match=message):
        load_run(None, [*ENOUGH, *settings])


def test_a_threshold_is_that_of_the_costs_ratio_however_large_they_are():
    assert Costs(false_negative=5, false_positive=1).threshold == pytest.approx(1 / 6)
    assert Costs(false_negative=1e308, false_positive=1e308).threshold == 0.5
    assert Costs(false_negative=1e-300, false_positive=3e-300).threshold == pytest.approx(0.75)


def test_the_class_that_costs_are_about_is_never_guessed():
    words = [word for word in ENOUGH if not word.startswith("data.positive")]
    with pytest.raises(
        UsageError, match=r"^costs: they are of two classes, one of which data\.positive names; name it"
    ):
        load_run(None, [*words, *COSTS])
