"""Processes killed with SIGKILL while they save: what was committed always loads."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from chinchilla.store import checkpoint


def tensors_of(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "model": {"weight": torch.full((200, 100), float(step)), "bias": torch.arange(100) * step},
        "optimizer": {"momentum": torch.full((200, 100), step / 7).bfloat16()},
    }


def unexpected(path: Path, reason: str) -> None:
    raise AssertionError(f"{path}: {reason}")


def save_for_ever(folder: Path, log: Path) -> None:
    """Resume from the newest checkpoint and save step after step; each is logged once `save` has returned."""
    found = checkpoint.latest(folder, unexpected)
    step = found.step if found else 0
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while True:
        step += 1
        again = random.Random(step).random() < 0.3  # the same step twice, as at a signal
        for _ in range(1 + again):
            checkpoint.save(folder, step, tensors_of(step), {"step": step}, keep=2)
        os.write(descriptor, b"%d\n" % step)


def committed(log: Path) -> int:
    return int(log.read_text().split()[-1]) if log.exists() and log.read_text() else 0


def kill_during_saves(tmp_path: Path, kills: int) -> None:
    context = multiprocessing.get_context("forkserver")
    # One server forks the processes of all tests: what those of training need is here too.
    context.set_forkserver_preload(["chinchilla.training.trainer", "torch._dynamo", "pytest"])
    folder, log, chosen = tmp_path / "checkpoints", tmp_path / "log", random.Random(0)
    leftovers = 0
    for _ in range(kills):
        before = committed(log)
        process = context.Process(target=save_for_ever, args=(folder, log))
        process.start()
        while committed(log) == before and process.is_alive():
            time.sleep(0.002)
        time.sleep(chosen.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL  # it did not stop by itself, with an error
        found = checkpoint.latest(folder, unexpected)
        assert found is not None and committed(log) <= found.step <= committed(log) + 1
        assert found.state == {"step": found.step}
        for group, tensors in tensors_of(found.step).items():
            assert all(torch.equal(found.tensors[group][name], tensor) for name, tensor in tensors.items())
        leftovers += any(path.name.startswith(".") for path in folder.iterdir())
    assert leftovers > 0, "no kill came during a save"
    checkpoint.save(folder, committed(log) + 2, tensors_of(1), {}, keep=2)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_ten_kills(tmp_path):
    kill_during_saves(tmp_path, 10)


@pytest.mark.slow
def test_a_hundred_kills(tmp_path):
    kill_during_saves(tmp_path, 100)
