"""Texts out of unpacked packages: help pages, package descriptions, documentation."""

import html
import re
from collections.abc import Iterator
from pathlib import Path

from chinchilla.config.errors import DataError
from chinchilla.data.examples import Document, Pair

_PARAGRAPH = re.compile(r'<(p|h\d)\b[^>]*\bid="([^"]+)"[^>]*>(.*?)</\1>', re.DOTALL)
_BREAK = re.compile(r"<br\b[^>]*>")
_TAG = re.compile(r"<[^>]+>")
_RECORD = re.compile(r"Package: (\S+)\nDescription-md5: (\w+)\nDescription-\w+: (.*)\n((?: .*\n?)*)")
_BLANK = re.compile(r"^ \.$", re.MULTILINE)


def help_pairs(source: Path, target: Path) -> Iterator[Pair]:
    """Paragraphs of LibreOffice help pages that carry the same id in two languages; the group is the page.

    `source` and `target` are the folders of two languages, with the same pages under them.
    """
    for page in sorted(source.rglob("*.html")):
        name = page.relative_to(source)
        if not (target / name).is_file():
            continue
        translations = _paragraphs(target / name)
        for key, text in _paragraphs(page).items():
            translation = translations.get(key, "")
            if text and translation and text != translation:
                yield Pair(text, translation, name.as_posix())


def _paragraphs(page: Path) -> dict[str, str]:
    text = page.read_text(encoding="utf-8")
    # A "switchinline" holds one wording for each application or system, side by side; only a browser picks one.
    return {key: _plain(body) for _, key, body in _PARAGRAPH.findall(text) if "switchinline" not in body}


def _plain(body: str) -> str:
    return " ".join(html.unescape(_TAG.sub("", _BREAK.sub(" ", body))).split())


def descriptions(lists: Path, language: str) -> dict[str, Document]:
    """Debian's package descriptions in a language, by the hash of the English one; the group is the source package.

    A text is its synopsis and paragraphs, one a line. `lists` holds apt's indexes.

    Raises:
        DataError: no descriptions in that language.
    """
    sources = _source_packages(lists)
    found = {}
    name = language.replace("_", "%5f")  # as apt writes an underscore in a file's name
    for index in sorted(lists.glob(f"*_i18n_Translation-{name}")):
        for package, digest, synopsis, body in _RECORD.findall(index.read_text(encoding="utf-8")):
            paragraphs = (" ".join(part.split()) for part in _BLANK.split(body))
            found[digest] = Document("\n".join((synopsis, *paragraphs)), sources.get(package, package))
    if not found:
        raise DataError(f"Debian has no package descriptions in {language!r} for this release")
    return found


def translated(english: dict[str, Document], other: dict[str, Document]) -> Iterator[Pair]:
    """Pair descriptions line by line, where both have the same number of lines."""
    for digest, document in english.items():
        if digest not in other:
            continue
        sources, targets = document.text.split("\n"), other[digest].text.split("\n")
        if len(sources) != len(targets):
            continue
        for source, target in zip(sources, targets, strict=True):
            if source and target and source != target:
                yield Pair(source, target, document.group)


def _source_packages(lists: Path) -> dict[str, str]:
    """Binary package -> the source package it's built from, where the names differ."""
    found = {}
    for index in lists.glob("*_Packages"):
        with index.open(encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("Package: "):
                    package = line[9:].strip()
                elif line.startswith("Source: "):
                    found[package] = line.split()[1]
    return found


def debian_release(lists: Path) -> dict[str, str]:
    """The release the indexes come from, like {"bookworm": "12.11 of Sat, 17 May 2025 …"}."""
    found = {}
    for index in sorted(lists.glob("*_InRelease")):
        fields = dict(re.findall(r"^(Codename|Version|Date): (.*)$", index.read_text(encoding="utf-8"), re.MULTILINE))
        found[fields["Codename"]] = " of ".join(fields[name] for name in ("Version", "Date") if name in fields)
    return found


def documentation(folder: Path) -> Iterator[Document]:
    """The reStructuredText sources of the Python documentation; a document and group is a page."""
    for page in sorted(folder.glob("python3*/html/_sources/**/*.rst.txt")):
        yield Document(page.read_text(encoding="utf-8"), page.relative_to(folder).as_posix().partition("_sources/")[2])
