"""`chinchilla data get`: fetch a real data set by name."""

from pathlib import Path

from chinchilla.data.source import Progress
from chinchilla.data.sources import default_cache, fetch, find


def get(name: str, cache: Path | None = None, progress: Progress = lambda message: None) -> Path:
    """Fetch a data set once and give its folder.

    A translation set holds train.tsv, valid.tsv and test.tsv (source, target, group); a text set the same as .jsonl
    (text, group); a model its weights. meta.json beside them gives packages, versions, licence and counts.

    Args:
        name: like "libreoffice-help", "ddtp-en-fr", "ddtp-en", "python-docs" or "smollm2".
        cache: the folder that data sets are kept in; $CHINCHILLA_CACHE or ~/.cache/chinchilla when absent.
        progress: called with one line of text a stage.

    Raises:
        DataError: no such data set.
        FaultError: a registry that cannot be reached, or a client (apt-get, pip) that is missing.
    """
    return fetch(find(name), cache or default_cache(), progress)
