"""Weights of classes from the recipe to the plan, for each kind of classifier."""

import numpy as np
import pytest
from contract_data import write
from sklearn.utils.class_weight import compute_class_weight

from chinchilla.config.errors import UsageError
from chinchilla.config.load import load_run
from chinchilla.planning.own_law import Settings
from chinchilla.verbs.draft import draft_training
from chinchilla.verbs.prepare import prepare

TASKS = ("classify_text", "classify_image", "classify_table")
SMALL = {"classify_text": ("tokenizer.vocab_size=300",)}


def run_of(task, folder, *settings):
    return load_run(None, [f"task={task}", "budget.time=1m", *write(task, folder), *SMALL.get(task, ()), *settings]).run


def labels_of(batches):
    found = np.concatenate([batches.batch(rows)["labels"].numpy().ravel() for rows in batches.order(0)])
    return found[found >= 0]


@pytest.mark.parametrize("task", TASKS)
def test_the_plan_holds_the_balance_of_the_training_examples(task, tmp_path, small_machine):
    run = run_of(task, tmp_path, "train.class_weights=balanced", "train.batch_tokens=1", "train.accumulation=1")
    prepared = prepare(run)
    training = draft_training(run, small_machine, prepared, 60.0)
    labels = labels_of(prepared.batches(training))  # one a micro-batch, so that none is left over
    names = prepared.codec.classes.names
    assert prepared.class_counts == dict(zip(names, np.bincount(labels).tolist(), strict=True))
    expected = compute_class_weight("balanced", classes=np.arange(len(names)), y=labels)
    assert training.class_weights == pytest.approx(expected.tolist())


def test_a_table_names_classes_and_a_wrong_name_is_refused_before_planning(tmp_path, small_machine):
    run = run_of("classify_table", tmp_path, "train.class_weights={ high = 3 }", "train.focal_gamma=2")
    training = draft_training(run, small_machine, prepare(run), 60.0)
    high, low = training.class_weights
    assert high / low == pytest.approx(3.0)
    wrong = run_of("classify_table", tmp_path, "train.class_weights={ hihg = 3 }")
    with pytest.raises(UsageError, match=r"no class 'hihg' \(did you mean 'high'\?\); the classes are 'high', 'low'"):
        prepare(wrong)


def test_focal_loss_turns_off_the_smoothing_that_images_have(tmp_path, small_machine):
    plain = run_of("classify_image", tmp_path)
    prepared = prepare(plain)
    assert draft_training(plain, small_machine, prepared, 60.0).label_smoothing == 0.1
    focal = plain.model_copy(update={"train": plain.train.model_copy(update={"focal_gamma": 2.0})})
    training = draft_training(focal, small_machine, prepared, 60.0)
    assert (training.label_smoothing, training.focal_gamma, training.class_weights) == (0.0, 2.0, ())
    # Nor does a law of smoothed runs bring it back.
    law = Settings.of(training.model_copy(update={"label_smoothing": 0.1, "focal_gamma": 0.0}))
    assert law.over(training, focal.train).label_smoothing == 0.0
    assert law.over(training, plain.train).label_smoothing == 0.1
