"""Whole runs whose training is changed: dropped paths, weighed classes, focal loss, free adversarial training."""

import json
import warnings

import pytest
from contract_data import write
from test_contract import Quiet

from chinchilla.config.errors import UsageError
from chinchilla.config.load import load_run
from chinchilla.config.plan import Plan
from chinchilla.store import checkpoint, journal
from chinchilla.verbs.robustness import robustness
from chinchilla.verbs.train import TrainResult, train
from chinchilla.verbs.verify import verify

SETTINGS = (
    "budget.flops=1e11", "train.steps=14", "train.checkpoint_every=5", "train.eval_every=7", "train.probes=false",
    "train.threads=1", "train.accumulation=2", "train.compile=false", "train.batch_tokens=24", "model.dim=32",
    "model.num_encoder_layers=2", "evaluate.max_examples=12",
)  # fmt: skip
CHANGED = ("train.drop_path=0.2", "train.class_weights={ none = 2 }", "train.focal_gamma=1.5")
FREE = ("attack.kind=free", "attack.eps=0.03", "attack.steps=4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_machine) -> tuple[Plan, TrainResult]:
    folder, plans = tmp_path_factory.mktemp("regularised"), []
    settings = [f"runs={folder}", "task=classify_image", *write("classify_image", folder), *SETTINGS, *CHANGED, *FREE]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr("chinchilla.verbs.plan.cached_measure", lambda *args, **kwargs: small_machine)
        result = train(load_run(None, settings), Quiet(), plans.append)
    return plans[0], result


def test_the_plan_holds_every_setting_and_says_so(trained):
    made, _ = trained
    training = made.training
    assert (training.drop_path, training.focal_gamma, training.label_smoothing) == (0.2, 1.5, 0.0)
    across, down, none = training.class_weights
    assert none / across == none / down == pytest.approx(2.0)
    said = {decision.name: f"{decision.value}; {decision.reason}" for decision in made.decisions}
    assert "paths dropped up to 0.2, classes weigh" in said["regularisation"] and "focal" in said["regularisation"]
    assert "each for 4 steps in a row" in said["batch"]


def test_the_steps_and_examples_that_were_planned_are_those_that_are_counted(trained):
    made, result = trained
    assert result.measured["tokens"] == pytest.approx(made.predicted["tokens"].p50, rel=0.02)
    losses = [line for line in journal.read(result.run / "metrics.jsonl") if "loss" in line]
    assert losses[-1]["step"] == 14 and losses[-1]["tokens"] == result.measured["tokens"]
    # 14 steps of two micro-batches, four times each: six micro-batches begun, and the fourth group's not ended.
    saved = checkpoint.load(result.run / "checkpoints" / "step-000014")
    epoch, index = saved.state["position"]
    per_epoch = made.unique_tokens * 14 * 2 / made.predicted["tokens"].p50
    assert epoch * round(per_epoch) + index == 6
    assert sorted(saved.tensors["disturbances"]) == ["0", "1"]


def test_such_a_run_can_be_done_again_and_attacked(trained):
    _, result = trained
    found = verify(result.run)
    assert found.replay is not None and not found.replay.difference
    found.require_ok()
    accuracies = [found.accuracy for found in robustness(result.run, "pgd", [0.03], steps=2)]
    assert len(accuracies) == 2 and accuracies[1] <= accuracies[0]
    with pytest.raises(UsageError, match="--attack free: not for classify_image; there are fgsm, pgd"):
        robustness(result.run, "free")


def test_what_the_run_keeps_can_be_read_again(trained):
    made, result = trained
    again = load_run(result.run / "run.toml", [])
    assert again.run.train.class_weights == {"none": 2.0} and again.run.attack.replays == 4
    kept = Plan.model_validate(json.loads((result.run / "plan.json").read_text(encoding="utf-8")))
    assert kept.training == made.training
