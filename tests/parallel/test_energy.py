"""Power: from counters where they can be read, else declared, and always said which."""

from pathlib import Path

import pytest

from chinchilla.parallel import energy
from chinchilla.parallel.energy import power, rapl_joules


def package(root: Path, name: str, microjoules: str) -> None:
    (root / name).mkdir()
    (root / name / "energy_uj").write_text(microjoules)


def test_packages_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", "3000000\n")
    package(tmp_path, "intel-rapl:1", "2000000\n")
    package(tmp_path, "intel-rapl:0:0", "1000000\n")
    assert rapl_joules(tmp_path) == 5.0
    (tmp_path / "intel-rapl:0" / "name").write_text("package-0\n")
    package(tmp_path, "intel-rapl:2", "9000000\n")
    (tmp_path / "intel-rapl:2" / "name").write_text("psys\n")  # the platform, the packages in it
    assert rapl_joules(tmp_path) == 5.0


@pytest.mark.parametrize("content", [None, "", "nonsense"])
def test_counters_that_cannot_be_read_are_none(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "intel-rapl:0").mkdir()
    if content is not None:
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text(content)
    assert rapl_joules(tmp_path) is None
    assert rapl_joules(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("counts", "how"), [((10.0, 25.0), "rapl"), ((10.0, 2.0), "declared"), ((None, None), "declared")]
)
def test_power_says_how_it_is_known(
    monkeypatch: pytest.MonkeyPatch, counts: tuple[float | None, float | None], how: str
) -> None:
    told, clock = iter(counts), iter([0.0, 0.0, 1.0, 3.0, 3.0])
    monkeypatch.setattr(energy, "rapl_joules", lambda: next(told))
    monkeypatch.setattr(energy.time, "perf_counter", lambda: next(clock))
    found = power(lambda: None, "cpu", threads=2, time_s=2.0)
    assert found.how == how
    if how == "rapl":
        # 15 J in 3 s.
        assert found.watts.p50 == pytest.approx(5.0)
        assert found.watts.source == "measured"
    else:
        assert found.watts.source == "guess"
        assert found.watts.p90 / found.watts.p10 == pytest.approx(4.0)


def test_a_gpu_without_its_driver_is_declared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = power(lambda: None, "cuda", threads=1, time_s=0.0)
    assert found.how == "declared"
    assert found.watts.unit == "W"


def test_a_gpus_driver_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 412.5\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = power(lambda: None, "cuda:1", threads=1, time_s=0.0)
    assert (found.how, found.watts.p50) == ("nvml", 412.5)
