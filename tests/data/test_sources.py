"""Fetching data sets: found by name, made whole or not at all, split without leaks, failures named."""

import hashlib
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from chinchilla.config.errors import DataError, FaultError
from chinchilla.config.run import Data
from chinchilla.data import clients
from chinchilla.data.clients import Apt, npm_pack, pip_download
from chinchilla.data.corpora import debian_release, descriptions, help_pairs, translated
from chinchilla.data.examples import Document, Pair, key
from chinchilla.data.parts import Shares, write_parts
from chinchilla.data.readers import read_documents, read_pairs
from chinchilla.data.source import Source
from chinchilla.data.sources import catalogue, default_cache, fetch, find
from chinchilla.verbs.data import get


def quiet(message: str) -> None:
    pass


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"no data set 'libreofice-help'; did you mean 'libreoffice-help'\?.*smollm2"):
        get("libreofice-help", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_have_one_folder_each():
    assert find("libreoffice-help-de").name == "libreoffice-help"
    assert find("ddtp").name == "ddtp-en-fr"
    assert {"libreoffice-help-ja", "ddtp-en", "ddtp-en-de", "python-docs", "smollm2"} <= set(catalogue())
    assert all(name == source.name and source.licence for name, source in catalogue().items())


def test_the_cache_is_the_users_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CHINCHILLA_CACHE", raising=False)
    assert default_cache() == tmp_path / ".cache" / "chinchilla"
    monkeypatch.setenv("CHINCHILLA_CACHE", str(tmp_path / "elsewhere"))
    assert default_cache() == tmp_path / "elsewhere"


def test_a_set_is_built_once_and_says_what_it_is(tmp_path):
    built: list[Path] = []

    def build(work, out, progress):
        built.append(work)
        progress("building")
        (out / "train.tsv").write_text("a\tb\n")
        return {"packages": {"p": "1"}}

    said: list[str] = []
    source = Source("tiny", "a tiny set", "CC0", build)
    folder = fetch(source, tmp_path / "cache", said.append)
    assert fetch(source, tmp_path / "cache", said.append) == folder
    assert len(built) == 1
    assert said == ["building", f"tiny is in {folder}"]
    meta = json.loads((folder / "meta.json").read_text())
    assert meta == {"name": "tiny", "about": "a tiny set", "licence": "CC0", "packages": {"p": "1"}}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny"]


def test_a_fetch_that_breaks_off_leaves_nothing(tmp_path):
    def build(work, out, progress):
        (out / "train.tsv").write_text("half")
        raise FaultError("the network is gone")

    with pytest.raises(FaultError, match="the network is gone"):
        fetch(Source("tiny", "", "", build), tmp_path, quiet)
    assert list(tmp_path.iterdir()) == []


def test_of_two_processes_the_faster_one_wins(tmp_path):
    def build(work, out, progress):
        (tmp_path / "tiny").mkdir()
        (tmp_path / "tiny" / "meta.json").write_text("{}")
        return {}

    assert fetch(Source("tiny", "", "", build), tmp_path, quiet) == tmp_path / "tiny"
    assert (tmp_path / "tiny" / "meta.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_group_has_the_same_part_on_every_machine():
    shares = Shares(valid=0.2, test=0.1)
    names = [f"page {number}" for number in range(2000)]
    for name in names[:50]:
        place = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 2**64
        assert shares.part(name) == ("test" if place < 0.1 else "valid" if place < 0.3 else "train")
    counts = [sum(shares.part(name) == part for name in names) / 2000 for part in ("train", "valid", "test")]
    assert counts == pytest.approx([0.7, 0.2, 0.1], abs=0.03)


def test_parts_hold_no_duplicates_and_no_leaks(tmp_path):
    shares = Shares(valid=0.3, test=0.3)
    pairs = [Pair(f"Sentence {n % 40}", f"Satz {n % 41}", f"page {n % 30}") for n in range(600)]
    counts = write_parts(tmp_path, pairs, shares)
    parts = {name: list(read_pairs(tmp_path / f"{name}.tsv", Data(train=tmp_path))) for name in counts}
    assert {name: len(part) for name, part in parts.items()} == counts
    keys = {name: [key(pair) for pair in part] for name, part in parts.items()}
    assert not set(keys["train"]) & set(keys["valid"]) and not set(keys["train"]) & set(keys["test"])
    assert not set(keys["valid"]) & set(keys["test"])
    assert len(set(keys["test"])) == len(keys["test"])
    assert len({pair[:2] for pair in parts["train"]}) == len(parts["train"])
    assert {shares.part(pair.group) for pair in parts["test"]} == {"test"}


def test_documents_are_written_as_json(tmp_path):
    documents = [Document(f"Line {n}\nwith a\ttab and 高い", f"g{n}") for n in range(60)]
    counts = write_parts(tmp_path, documents, Shares(valid=0.2, test=0.2))
    found = [d for name in counts for d in read_documents(tmp_path / f"{name}.jsonl", Data(train=tmp_path))]
    assert sorted(found) == sorted(documents)


def test_a_part_that_would_be_empty_is_an_error(tmp_path):
    with pytest.raises(DataError, match="too few examples"):
        write_parts(tmp_path, [Pair("a", "b", "one page")], Shares(valid=0.1, test=0.1))


def page(*paragraphs: str) -> str:
    return "<html><body>" + "\n".join(paragraphs) + "</body></html>"


def test_help_pages_are_paired_by_the_ids_of_their_paragraphs(tmp_path):
    english, german = tmp_path / "en-US", tmp_path / "de"
    for folder in (english / "text", german / "text"):
        folder.mkdir(parents=True)
    (english / "text" / "a.html").write_text(
        page(
            '<h1 id="hd_1" dir="auto">Open a  file</h1>',
            '<p id="par_1" class="x">Choose <span class="emph">File &amp; Open</span>.<br/>Then wait.</p>',
            '<p id="par_2">SUM(A1)</p>',
            '<p id="par_3">Press <span class="switchinline"><span class="MAC">Cmd</span><span>Ctrl</span></span>.</p>',
            '<p id="par_4">Only here.</p>',
            "<p>No id.</p>",
        )
    )
    (german / "text" / "a.html").write_text(
        page(
            '<p id="par_1">Wählen Sie <b>Datei &amp; Öffnen</b>.<br>Warten Sie.</p>',
            '<h1 id="hd_1">Eine Datei öffnen</h1>',
            '<p id="par_2">SUM(A1)</p>',
            '<p id="par_3">Drücken Sie Strg.</p>',
        )
    )
    (english / "text" / "b.html").write_text(page('<p id="par_1">No German page.</p>'))
    assert list(help_pairs(english, german)) == [
        Pair("Open a file", "Eine Datei öffnen", "text/a.html"),
        Pair("Choose File & Open. Then wait.", "Wählen Sie Datei & Öffnen. Warten Sie.", "text/a.html"),
    ]


INDEX = """Package: {package}
Description-md5: {digest}
Description-{language}: {synopsis}
 {first}
 goes on
 .
 {second}

"""


def test_package_descriptions_are_paired_line_by_line(tmp_path):
    def index(language, name, *rows):
        text = "".join(
            INDEX.format(language=language, package=p, digest=d, synopsis=s, first=f, second=g)
            for p, d, s, f, g in rows
        )
        (tmp_path / f"mirror_dists_stable_main_i18n_Translation-{name}").write_text(text)

    index("en", "en", ("libfoo1", "00aa", "a library", "It does", "More."), ("bar", "00bb", "a tool", "It runs", "X."))
    index("pt_BR", "pt%5fBR", ("libfoo1", "00aa", "uma biblioteca", "Ela faz", "More."))
    (tmp_path / "mirror_dists_stable_main_binary-all_Packages").write_text("Package: libfoo1\nSource: foo (1.2)\n\n")
    english, other = descriptions(tmp_path, "en"), descriptions(tmp_path, "pt_BR")
    assert english["00aa"] == Document("a library\nIt does goes on\nMore.", "foo")
    assert english["00bb"].group == "bar"
    assert list(translated(english, other)) == [
        Pair("a library", "uma biblioteca", "foo"),
        Pair("It does goes on", "Ela faz goes on", "foo"),
    ]
    with pytest.raises(DataError, match="no package descriptions in 'xx'"):
        descriptions(tmp_path, "xx")


def test_the_release_is_read_from_the_indexes(tmp_path):
    (tmp_path / "mirror_dists_stable_InRelease").write_text("Hash: x\nVersion: 12.1\nCodename: stable\nDate: today\n")
    assert debian_release(tmp_path) == {"stable": "12.1 of today"}


def test_a_client_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FaultError, match="apt-get is not on this machine"):
        get("libreoffice-help", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_client_that_fails_is_quoted(monkeypatch, tmp_path):
    client = tmp_path / "apt-get"
    client.write_text("#!/bin/sh\necho 'W: ignore me' >&2\necho 'E: Could not resolve the host' >&2\nexit 100\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        FaultError, match=r"apt-get could not get the data: E: Could not resolve the host; check the net"
    ):
        get("ddtp-en", tmp_path / "cache")


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get is not on this machine")
def test_a_registry_out_of_reach_is_a_fault(monkeypatch, tmp_path):
    sources = tmp_path / "dead.list"
    sources.write_text("deb [trusted=yes] http://127.0.0.1:9/debian stable main\n")
    monkeypatch.setattr(clients, "_SOURCE_LISTS", (sources,))
    with pytest.raises(FaultError, match=r"apt-get could not get the data: E: .*; check the network"):
        Apt(tmp_path).update()


def test_a_wheel_is_unpacked_only_when_it_is_the_pinned_one(monkeypatch, tmp_path):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "tiny_set-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_set/data.txt", "hello")
        archive.writestr("tiny_set-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-set\nVersion: 1.0\n")
        archive.writestr("tiny_set-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_set-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    pinned = hashlib.sha256(wheel.read_bytes()).hexdigest()
    folders = [tmp_path / name for name in ("right", "wrong", "absent")]
    for folder in folders:
        folder.mkdir()
    assert (pip_download("tiny-set==1.0", pinned, folders[0]) / "tiny_set/data.txt").read_text() == "hello"
    with pytest.raises(FaultError, match="pip could not get the data"):
        pip_download("tiny-set==1.0", "0" * 64, folders[1])
    with pytest.raises(FaultError, match="No matching distribution found for no-such-set"):
        pip_download("no-such-set==1.0", pinned, folders[2])


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not on this machine")
def test_an_npm_package_is_unpacked_only_when_it_is_the_pinned_one(tmp_path):
    package = tmp_path / "tiny-set"
    package.mkdir()
    (package / "data.txt").write_text("hello")
    (package / "package.json").write_text('{"name": "tiny-set", "version": "1.0.0", "scripts": {"prepack": "exit 3"}}')
    archive = tmp_path / "tiny-set-1.0.0.tgz"
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(package, "package")
    pinned = hashlib.sha256(archive.read_bytes()).hexdigest()
    folders = [tmp_path / name for name in ("right", "wrong", "absent")]
    for folder in folders:
        folder.mkdir()
    assert (npm_pack(f"file:{archive}", pinned, folders[0]) / "data.txt").read_text() == "hello"
    with pytest.raises(FaultError, match=f"npm could not get the data: .*SHA-256 {pinned}, not 000"):
        npm_pack(f"file:{archive}", "0" * 64, folders[1])
    with pytest.raises(FaultError, match="npm could not get the data: code ENOENT"):
        npm_pack(f"file:{tmp_path / 'none.tgz'}", pinned, folders[2])


def test_the_real_help_pages_are_whole_and_leak_nothing():
    try:
        folder = get("libreoffice-help")
    except FaultError as error:
        pytest.skip(f"libreoffice-help cannot be fetched here: {error}")
    meta = json.loads((folder / "meta.json").read_text())
    data = Data(train=folder / "train.tsv")
    parts = {name: list(read_pairs(folder / f"{name}.tsv", data)) for name in ("train", "valid", "test")}
    assert {name: len(part) for name, part in parts.items()} == meta["examples"]
    assert len(parts["train"]) > 25_000 and len(parts["test"]) > 1000 and len(parts["valid"]) > 500
    keys = {name: {key(pair) for pair in part} for name, part in parts.items()}
    groups = {name: {pair.group for pair in part} for name, part in parts.items()}
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not keys[one] & keys[other]
        assert not groups[one] & groups[other]
    assert set(meta["packages"]) == {"libreoffice-help-en-us", "libreoffice-help-de"}
