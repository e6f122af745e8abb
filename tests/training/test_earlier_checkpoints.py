"""Checkpoints of other circumstances: an earlier release's, and another number of workers'."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.optim._muon import _zeropower_via_newtonschulz
from training_fakes import digest, make_shape, make_trainer

from chinchilla.data.stream import stream
from chinchilla.store import checkpoint, journal

RELEASE = Path(__file__).parent / "release_0_1"
"""What 0.1.0 saved after step 6 of 12, in its own form, and the metrics that it went on to."""


def test_a_checkpoint_of_the_first_release_resumes(tmp_path, monkeypatch):
    """Sums may be taken in another order on another machine: the losses are close, not the same bits.

    That release had torch's Muon, whose directions are put in the place of ours.
    """
    monkeypatch.setattr(
        "chinchilla.training.muon.orthogonal",
        lambda matrix: _zeropower_via_newtonschulz(matrix, (3.4445, -4.775, 2.0315), 5, 1e-7),
    )
    expected = json.loads((RELEASE / "expected.json").read_text())
    shape = make_shape(dim=8, num_heads=1, num_kv_heads=1, head_dim=8, ffn_dim=16)
    settings: dict[str, Any] = {"dropout": 0.2, "accumulation": 2, "threads": 2, "checkpoint_every": 6, "eval_every": 3}
    trainer = make_trainer(tmp_path, 9, shape, **settings)
    trainer.resume(checkpoint.load(RELEASE / "step-000006"))
    outcome = trainer.run()
    found = journal.read(trainer.folder.metrics)
    assert len(found) == len(expected["metrics"])
    for line, wanted in zip(found, expected["metrics"], strict=True):
        assert {name: line[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)
    assert outcome.best_step == expected["best_step"]
    state = checkpoint.load(trainer.folder.checkpoints / "step-000012").state
    assert (state["rollbacks"], state["due"], len(state["losses"])) == (0, False, 6)


def test_the_order_of_the_data_is_the_same_from_one_worker_to_two_to_one(tmp_path, monkeypatch):
    """The place and the content of every micro-batch that a step took; the sums differ in their last bits only."""
    taken: list[tuple[int, int, str]] = []

    def watched(*args: Any) -> Iterator[Any]:
        for position, batch in stream(*args):
            taken.append((position.epoch, position.index, digest(batch)))
            yield position, batch

    monkeypatch.setattr("chinchilla.training.trainer.stream", watched)
    whole = make_trainer(tmp_path / "whole", accumulation=2)
    whole.run()
    usual, taken[:] = list(taken), []
    folder = tmp_path / "changing"
    for threads, until in ((1, 4), (2, 8), (1, 12)):
        trainer = make_trainer(folder, threads, accumulation=2, threads=threads)
        if until > 4:
            saved = checkpoint.latest(trainer.folder.checkpoints, lambda path, why: pytest.fail(why))
            assert saved is not None and saved.step == until - 4
            trainer.resume(saved)
        else:
            trainer = make_trainer(folder, 0, accumulation=2, threads=threads)
        assert len(trainer.workers.models) == threads
        trainer.training = trainer.training.model_copy(update={"steps": until})
        # The schedule is the whole run's.
        trainer._rate_scale = whole._rate_scale  # type: ignore[method-assign]
        for step in trainer.steps():
            trainer.watch.see(step.loss)
        trainer.save()
        trainer.saver.settle()
        trainer.workers.close()
    assert taken == usual and len(taken) == 24
    last = checkpoint.load(folder / "checkpoints" / "step-000012")
    for name, tensor in checkpoint.load(whole.folder.checkpoints / "step-000012").tensors["model"].items():
        assert tensor.allclose(last.tensors["model"][name], rtol=1e-2, atol=1e-4), name
