"""Cluster files: what is read, and what is refused with file, entry and mend."""

from pathlib import Path

import pytest

from chinchilla.cli import main
from chinchilla.config.cluster import Cluster, read_cluster
from chinchilla.config.errors import UsageError
from chinchilla.config.load import load_run, to_toml

NODE = 'flops_per_s = { fp32 = "10T", bf16 = 4e13 }\nmemory_bytes = "16GB"\nbytes_per_s = "50GB/s"\n'
A = f'[[node]]\nname = "a"\n{NODE}'
B = f'[[node]]\nname = "b"\n{NODE}'
C = f'[[node]]\nname = "c"\n{NODE}'
LINE = 'bytes_per_s = "1Gbit/s"\nlatency_s = "2ms"\n'
AB = f'[[link]]\nbetween = ["a", "b"]\n{LINE}'


def read(folder: Path, text: str) -> Cluster:
    path = folder / "cluster.toml"
    path.write_text(text, encoding="utf-8")
    return read_cluster(path)


def test_units_are_read(tmp_path: Path) -> None:
    cluster = read(tmp_path, A + 'price_per_hour = 1.5\nwatts = 300\naddress = "10.0.0.1"\n' + B + AB)
    first, second = cluster.node
    assert first.flops_per_s == {"fp32": 1e13, "bf16": 4e13}
    assert (first.memory_bytes, first.bytes_per_s, first.devices) == (16 * 10**9, 5e10, 1)
    assert (first.price_per_hour, first.watts, second.watts) == (1.5, 300, None)
    assert (cluster.link[0].bytes_per_s, cluster.link[0].latency_s) == (1.25e8, 0.002)
    assert cluster.find("b") is second


def test_a_link_joins_every_two_of_its_nodes_and_may_be_a_table(tmp_path: Path) -> None:
    cluster = read(tmp_path, A + B + C + '[[link]]\nbetween = ["a", "b", "c"]\ntable = [["1kB", "1ms"], [1e6, 0.1]]\n')
    assert cluster.link[0].table == ((1000, 0.001), (1_000_000, 0.1))
    assert set(cluster.link[0].pairs) == {frozenset("ab"), frozenset("ac"), frozenset("bc")}


def test_nodes_may_be_joined_in_a_ring_or_over_one_another(tmp_path: Path) -> None:
    bc, ca = AB.replace('"a", "b"', '"b", "c"'), AB.replace('"a", "b"', '"c", "a"')
    assert len(read(tmp_path, A + B + C + AB + bc + ca).link) == 3
    assert len(read(tmp_path, A + B + C + AB + bc).link) == 2


BAD = {
    "unknown key": (A + 'flop_per_s = 1\n', "node 1 ('a'): unknown key flop_per_s; did you mean 'flops_per_s'?"),
    "unknown table": (A + "[[nodes]]\n", "unknown key nodes; did you mean 'node'?"),
    "unknown link key": (A + B + AB + "latency = 1\n", "unknown key latency; did you mean 'latency_s'?"),
    "unknown node": (A + B + AB.replace('"b"]', '"bb"]'), "link 1: no node is named 'bb'; did you mean 'b'?"),
    "no path": (A + B + C + AB, "no path of links leads from 'a' to 'c': add a [[link]] with between = [\"a\", \"c\"]"),
    "no link": (A + B, "no path of links leads from 'a' to 'b'"),
    "same name": (A + A, "2 nodes are named 'a': give each its own name"),
    "self link": (A + AB.replace('"b"', '"a"'), "link 1: joins 'a' with itself, which has one device"),
    "twice in one": (A + B + AB.replace('"a", "b"', '"a", "b", "a"'), "link 1: names a node twice: a, b, a"),
    "cycle of two": (A + B + AB + AB.replace('"a", "b"', '"b", "a"'), "link 2: a and b are joined by link 1 already"),
    "alone": (A + AB.replace('"a", "b"', '"a"'), "link 1 (['a']): between: tuple should have at least 2 items"),
    "no device link": (A + "devices = 8\n", "'a' has 8 devices and no link between them: add a [[link]]"),
    "negative": (A.replace('"10T"', "-1"), "flops_per_s.fp32: input should be greater than 0 (given: -1)"),
    "zero": (A.replace('"50GB/s"', "0"), "node 1 ('a'): bytes_per_s: input should be greater than 0"),
    "nan": (A.replace('"10T"', "nan"), "node 1 ('a'): flops_per_s.fp32: input should be a finite number (given: nan)"),
    "infinite": (A + B + AB.replace('"1Gbit/s"', "inf"), "link 1 (['a', 'b']): bytes_per_s: input should be a finite"),
    "bool": (A.replace('"10T"', "true"), "node 1 ('a'): flops_per_s.fp32: true is not a rate"),
    "unit": (A.replace('"50GB/s"', '"50 parsecs"'), "node 1 ('a'): bytes_per_s: '50 parsecs' is not a bandwidth"),
    "precision": (A.replace("fp32", "fp8"), "node 1 ('a'): flops_per_s.fp8: input should be 'fp32' or 'bf16'"),
    "one rate": (A.replace('{ fp32 = "10T", bf16 = 4e13 }', "1"), "flops_per_s: write a table by precision, like {"),
    "no rate": (A.replace('fp32 = "10T", bf16 = 4e13', ""), "flops_per_s: dictionary should have at least 1 item"),
    "missing": (A.replace('memory_bytes = "16GB"\n', ""), "node 1 ('a'): memory_bytes is missing"),
    "devices": (A + "devices = 0\n", "node 1 ('a'): devices: input should be greater than 0"),
    "latency": (A + B + AB.replace('"2ms"', "-1"), "link 1 (['a', 'b']): latency_s: input should be greater than or"),
    "half a line": (A + B + AB.replace('latency_s = "2ms"\n', ""), "give bytes_per_s and latency_s, or a table of"),
    "both": (A + B + AB + "table = [[1, 1], [2, 2]]\n", "give bytes_per_s and latency_s, or a table, not both"),
    "falling": (A + B + AB.replace(LINE, "table = [[1, 2], [2, 1]]\n"), "sizes must grow, times must not fall"),
    "one point": (A + B + AB.replace(LINE, "table = [[1, 2]]\n"), "table: tuple should have at least 2 items"),
    "empty": ("", "write at least one [[node]]"),
    "a table": ('[node]\nname = "a"\n', "write [[node]] tables"),
    "a number": ("node = [1]", "node 1: write a table with [[node]]"),
    "not TOML": ("[[node]\n", "not valid TOML"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_named_with_file_and_entry(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        read(tmp_path, text)
    lines = str(error.value).splitlines()
    assert len(lines) <= 2, lines
    assert all(line.startswith(f"{tmp_path / 'cluster.toml'}: ") for line in lines)
    assert any(message in line for line in lines), lines


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: no such cluster file"):
        read_cluster(tmp_path / "none.toml")


def test_a_recipe_names_its_cluster_relative_to_itself(tmp_path: Path) -> None:
    recipe = tmp_path / "run.toml"
    recipe.write_text(
        'task = "translate"\n[data]\ntrain = "a.tsv"\n[budget]\ntime = "1m"\n[cluster]\nfile = "cluster.toml"\n'
    )
    loaded = load_run(recipe)
    assert loaded.run.cluster.file == tmp_path / "cluster.toml"
    recipe.write_text(to_toml(loaded))
    assert load_run(recipe).run == loaded.run
    assert load_run(None, ["task=translate", "data.train=a.tsv", "budget.time=1m"]).run.cluster.file is None


@pytest.mark.parametrize("verb", ["plan", "train"])
def test_a_wrong_cluster_file_stops_a_verb_before_it_reads_any_data(
    tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(A + B)
    words = ["task=translate", "data.train=none.tsv", "budget.time=1m", f"cluster.file={path}"]
    assert main([verb, *words]) == 2
    assert "no path of links leads from 'a' to 'b'" in capsys.readouterr().err
