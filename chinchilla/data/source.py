"""What a data set that can be fetched says of itself, and how it is built."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

Progress = Callable[[str], None]
Build = Callable[[Path, Path, Progress], dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """One data set that can be fetched: `build(work, out, progress)` fills `out` and gives facts for its meta.json."""

    name: str
    about: str
    licence: str
    build: Build


class Pin(NamedTuple):
    """One version of a package, "name==1.0" as pip writes it or "name@1.0" as npm does, and its file's SHA-256."""

    package: str
    sha256: str

    def facts(self) -> dict[str, Any]:
        """What meta.json says of it."""
        name, _, version = self.package.replace("==", "@").rpartition("@")
        return {"packages": {name: version}, "sha256": self.sha256}
