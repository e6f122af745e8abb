"""Measuring this machine, small; and keeping what was measured."""

import datetime
import logging
import os
import subprocess
from pathlib import Path

import pytest
import torch

from chinchilla.config.errors import FaultError
from chinchilla.config.estimate import Estimate
from chinchilla.config.machine import Calibration, Machine, MatmulRate, Power, StepTerm
from chinchilla.parallel import measure as room
from chinchilla.parallel.measure import (
    bandwidth,
    cached_measure,
    device_name,
    has_compiler,
    measure,
    memory_bytes,
    noise,
    op_overhead,
)
from chinchilla.planning.step_model import GRADIENT_UNITS, UPDATE_UNITS
from chinchilla.verbs.measure import measure as verb

SHAPES = ((64, 32, 64), (128, 64, 32))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same measurements, each for a moment and on small buffers."""
    monkeypatch.setattr(room, "REPEAT_S", 0.001)
    monkeypatch.setattr(room, "BUFFER_BYTES", 2**20)


@pytest.fixture
def machine() -> Machine:
    rate = MatmulRate(m=1, k=2, n=3, precision="fp32", flops_per_s=1e9)
    return Machine(
        name="a processor", device="cpu", threads=1, memory_bytes=10**9, torch_version=torch.__version__,
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(), noise=0.1, matmul=(rate,), bytes_per_s=1e10,
        op_overhead_s=1e-6, has_compiler=False,
    )  # fmt: skip


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> list[int | None]:
    """`measure` replaced: the thread counts it was called with."""
    seen: list[int | None] = []

    def fake(shapes: object = None, device: str = "cpu", threads: int | None = None) -> Machine:
        seen.append(threads)
        return machine

    monkeypatch.setattr(room, "measure", fake)
    return seen


def test_a_machine_is_measured_whole(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="chinchilla"):
        found = measure(SHAPES, threads=1)
    assert {(r.m, r.k, r.n, r.precision) for r in found.matmul} == {
        (*shape, precision) for shape in SHAPES for precision in ("fp32", "bf16")
    }
    assert found.threads == 1
    assert found.torch_version == torch.__version__
    # No processor does less than 1 MFLOP/s or more than 100 TFLOP/s on these, or copies outside 10 MB/s … 10 TB/s.
    assert all(1e6 < rate.flops_per_s < 1e14 for rate in found.matmul)
    assert 1e7 < found.bytes_per_s < 1e13
    assert 1e-8 < found.op_overhead_s < 1e-2
    assert found.noise >= 0
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(found.measured_at)
    assert age < datetime.timedelta(minutes=5)
    assert "GFLOP/s" in caplog.text
    assert Machine.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(("noise", "said"), [(0.6, True), (0.4, False)])
def test_a_busy_machine_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, noise: float, said: bool
) -> None:
    monkeypatch.setattr(room, "noise", lambda device: noise)
    assert measure(SHAPES[:1], threads=1).noise == noise
    assert ("busy" in caplog.text) == said


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    measure(SHAPES[:1], threads=before + 1)
    assert torch.get_num_threads() == before


def test_typical_shapes_reach_from_small_models_to_large() -> None:
    assert {k for _, k, _ in room.SHAPES} >= {128, 256, 512, 1024}
    assert any(n >= 8000 for _, _, n in room.SHAPES)


def test_products_that_would_take_too_long_are_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(room, "BUDGET_S", 0.0)
    with caplog.at_level(logging.INFO, logger="chinchilla"):
        found = measure(SHAPES, threads=1)
    # The smallest of each precision is always measured.
    assert [(r.m, r.precision) for r in found.matmul] == [(64, "fp32"), (64, "bf16")]
    assert caplog.text.count("left out") == 2


def test_parts_on_their_own() -> None:
    assert bandwidth("cpu") > 0
    assert op_overhead("cpu") > 0
    assert noise("cpu") >= 0
    assert device_name("cpu")
    assert 10**8 < memory_bytes("cpu") <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_processor_is_named_as_the_system_names_it() -> None:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        pytest.skip("no /proc/cpuinfo on this system")
    assert device_name("cpu") in info.read_text() or "model name" not in info.read_text()


def test_no_compiler_without_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    assert not has_compiler()


def test_a_compiler_that_fails_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert not has_compiler()


def test_a_working_compiler_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    found = subprocess.run(["sh", "-c", "command -v g++"], capture_output=True).returncode == 0
    if not found:
        pytest.skip("no g++ on this machine")
    assert has_compiler()


def test_what_was_measured_is_kept(tmp_path: Path, calls: list[int | None], machine: Machine) -> None:
    assert cached_measure(tmp_path / "cache", threads=1) == machine
    assert cached_measure(tmp_path / "cache", threads=1) == machine
    assert calls == [1]
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.name.startswith("machine-")
    assert Machine.model_validate_json(kept.read_text()) == machine


def test_other_threads_are_another_machine(tmp_path: Path, calls: list[int | None]) -> None:
    for threads in (1, 2, 2, 1):
        cached_measure(tmp_path, threads=threads)
    assert calls == [1, 2]


def test_measured_anew_when_asked(tmp_path: Path, calls: list[int | None]) -> None:
    cached_measure(tmp_path, threads=1)
    cached_measure(tmp_path, threads=1, refresh=True)
    assert calls == [1, 1]


@pytest.mark.parametrize(("days", "anew"), [(29, False), (31, True)])
def test_measured_anew_after_thirty_days(
    tmp_path: Path, calls: list[int | None], machine: Machine, days: int, anew: bool
) -> None:
    cached_measure(tmp_path, threads=1)
    (kept,) = tmp_path.iterdir()
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
    kept.write_text(machine.model_copy(update={"measured_at": then.isoformat()}).model_dump_json())
    cached_measure(tmp_path, threads=1)
    assert len(calls) == (2 if anew else 1)


def test_a_folder_that_cannot_be_made_is_named_before_anything_is_measured(
    tmp_path: Path, calls: list[int | None]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FaultError, match="file"):
        cached_measure(tmp_path / "file" / "cache", threads=1)
    assert not calls


@pytest.mark.parametrize("date", ["yesterday", "2026-11-22T00:00:00"])
def test_a_date_that_is_none_is_said(
    tmp_path: Path, calls: list[int | None], machine: Machine, date: str, caplog: pytest.LogCaptureFixture
) -> None:
    cached_measure(tmp_path, threads=1)
    (kept,) = tmp_path.iterdir()
    kept.write_text(machine.model_copy(update={"measured_at": date}).model_dump_json())
    assert cached_measure(tmp_path, threads=1) == machine
    assert "not readable" in caplog.text


@pytest.mark.parametrize("content", ["", "{", '{"name": "half a machine"}', "\udcff"])
def test_a_damaged_file_is_said_and_replaced(
    tmp_path: Path, calls: list[int | None], machine: Machine, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    cached_measure(tmp_path, threads=1)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(content.encode(errors="surrogateescape"))
    assert cached_measure(tmp_path, threads=1) == machine
    assert "not readable" in caplog.text
    assert len(calls) == 2
    assert Machine.model_validate_json(kept.read_text()) == machine


def test_what_a_plan_has_measured_is_extended_once_and_kept(
    tmp_path: Path, calls: list[int | None], machine: Machine
) -> None:
    seen: list[Machine] = []

    def extend(known: Machine) -> Machine:
        seen.append(known)
        watts = Estimate.around(8.0, 1.0, "W", "guess")
        return known.model_copy(update={"power": Power(watts=watts, how="declared")})

    cached_measure(tmp_path, threads=1)
    found = [cached_measure(tmp_path, threads=1, extend=extend) for _ in range(2)]
    assert found[0] == found[1] == cached_measure(tmp_path, threads=1)
    assert (len(calls), seen) == (1, [machine])
    cached_measure(tmp_path, threads=1, extend=extend, refresh=True)
    assert (len(calls), len(seen)) == (2, 2)


def test_a_fit_to_other_kinds_of_work_is_said_and_made_anew(
    tmp_path: Path, calls: list[int | None], machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    terms = {
        name: tuple(StepTerm(kind=kind, unit=unit, unit_s=1e-12) for kind, unit in units.items())
        for name, units in (("gradients", GRADIENT_UNITS), ("update", UPDATE_UNITS))
    }
    today = Calibration(
        precision="fp32", spread=0.06, update_spread=0.06, clock="cpu", waiting=1.0, noise=0.1, num_models=10,
        most_params=5 * 10**6, measured_at=machine.measured_at, **terms,
    )  # fmt: skip
    watts = Power(watts=Estimate.around(8.0, 1.0, "W", "guess"), how="declared")
    extended = machine.model_copy(update={"calibration": (today,), "power": watts})
    cached_measure(tmp_path, threads=1)
    (kept,) = tmp_path.iterdir()
    kept.write_text(extended.model_dump_json())
    assert cached_measure(tmp_path, threads=1) == extended
    before = today.model_copy(
        update={"gradients": (*today.gradients, StepTerm(kind="passes", unit="call", unit_s=1e-3))}
    )
    kept.write_text(extended.model_copy(update={"calibration": (before,)}).model_dump_json())
    assert cached_measure(tmp_path, threads=1).calibration == ()
    assert "other kinds of work" in caplog.text
    assert cached_measure(tmp_path, threads=1, extend=lambda known: extended) == extended
    assert len(calls) == 1


def test_a_machine_without_a_fit_is_said(
    tmp_path: Path, calls: list[int | None], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="chinchilla"):
        cached_measure(tmp_path, threads=1)
    assert "roofline, a guess" in caplog.text


def test_the_verb_keeps_in_the_cache_folder(
    tmp_path: Path, calls: list[int | None], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHINCHILLA_CACHE", str(tmp_path))
    monkeypatch.setattr("chinchilla.verbs.measure._extended", lambda known, tell: known)
    assert verb() == machine
    assert verb() == machine
    assert verb(refresh=True) == machine
    assert len(calls) == 2
    assert len(list(tmp_path.glob("machine-*.json"))) == 1
