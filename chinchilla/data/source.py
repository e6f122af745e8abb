"""What a data set that can be fetched says of itself, and how it is built."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Progress = Callable[[str], None]
Build = Callable[[Path, Path, Progress], dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """One data set that can be fetched: `build(work, out, progress)` fills `out` and gives facts for its meta.json."""

    name: str
    about: str
    licence: str
    build: Build
