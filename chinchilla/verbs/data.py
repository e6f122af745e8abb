"""`chinchilla data get`: fetch a real data set by name."""

from pathlib import Path

from chinchilla.data.source import Progress
from chinchilla.data.sources import default_cache, fetch, find


def get(name: str, cache: Path | None = None, progress: Progress = lambda message: None) -> Path:
    """Fetch a data set once and give its folder.

    A set of pairs holds train.tsv, valid.tsv and test.tsv (source, target, group); of other texts .jsonl (text, or text
    and label, or messages; and group); of tables .csv; a model its weights. meta.json beside them gives packages,
    versions, licence, the column of the label and counts.

    Args:
        name: like "libreoffice-help", "ddtp-summaries", "spam-assassin", "adult" or "smollm2".
        cache: the folder that data sets are kept in; $CHINCHILLA_CACHE or ~/.cache/chinchilla when absent.
        progress: called with one line of text a stage.

    Raises:
        DataError: no such data set.
        FaultError: a registry that cannot be reached, or a client (apt-get, pip, npm) that is missing.
    """
    return fetch(find(name), cache or default_cache(), progress)
