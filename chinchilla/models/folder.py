"""The files of a model folder, found and read with care: a folder from elsewhere may be damaged, or mean harm.

Names are plain, links do not lead out, texts have a largest size, pickles are refused. Where the folder has a
`SHA256SUMS` (`chinchilla.store.sums`), what is read is compared with it first.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chinchilla.config.errors import FaultError, UsageError
from chinchilla.store.atomic import sync_folder

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
CARD = "README.md"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"

MAX_TEXT_BYTES = {TOKENIZER: 256 << 20, INDEX: 64 << 20}
"""The largest texts that are read; the largest known tokenizers have about 40 MB."""

MAX_OTHER_TEXT_BYTES = 16 << 20

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

_MEND = (
    "weights are read from safetensors, never from pickles: get the model's safetensors form, or, if you trust who "
    "made the file, convert it with transformers, whose save_pretrained writes safetensors"
)


def find(folder: Path, name: str) -> Path:
    """The file called `name` in `folder`.

    Raises:
        UsageError: `name` is no plain name, or there is no such file.
        FaultError: it is a link that leads out of the folder, or no regular file.
    """
    path = folder / name
    if not _PLAIN.fullmatch(name):
        raise UsageError(f"{folder}: names {name!r}, which is no file of this folder; get the folder anew")
    if not path.exists() and not path.is_symlink():
        raise UsageError(f"{folder}: {name} is missing; get the folder anew")
    if path.is_symlink() and not _leads_home(path):
        raise FaultError(f"{path}: a link that leads out of the folder, which is refused; put the file itself there")
    if not path.is_file():
        raise FaultError(f"{path}: not a regular file; get the folder anew")
    return path


def _leads_home(link: Path) -> bool:
    """Whether a link ends in its own folder, or where Hugging Face's cache keeps the files of its snapshots."""
    home, real = link.parent.resolve(), Path(os.path.realpath(link))
    cached = home.parent.name == "snapshots" and real.parent == home.parent.parent / "blobs"
    return cached or real.parent == home


def is_there(folder: Path, name: str) -> bool:
    """Whether the folder has something called `name`, be it a file that `find` refuses."""
    return (folder / name).exists() or (folder / name).is_symlink()


def read_text(folder: Path, name: str) -> str | None:
    """A text file whole; None where there is none.

    Raises:
        FaultError: `find` refuses it, it is too large, or not UTF-8.
    """
    if not is_there(folder, name):
        return None
    path, most = find(folder, name), MAX_TEXT_BYTES.get(name, MAX_OTHER_TEXT_BYTES)
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise FaultError(f"{path}: larger than {most >> 20} MiB, which no {name} is; get the file anew")
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FaultError(f"{path}: damaged: {error}; get the file anew") from None


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A file's JSON object; empty where there is no such file.

    Raises:
        FaultError: as `read_text`, or it is not a JSON object.
    """
    text = read_text(folder, name)
    if text is None:
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FaultError(f"{folder / name}: damaged: {error}; get the file anew") from None
    if not isinstance(content, dict):
        raise FaultError(f"{folder / name}: damaged: not a JSON object; get the file anew")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The folder's one safetensors file, or the several that its index names.

    Raises:
        UsageError: one is missing, or there are only pickles, which are never opened.
        FaultError: one is a link that leads out, or the index is damaged.
    """
    if is_there(folder, WEIGHTS) or not is_there(folder, INDEX):
        if not is_there(folder, WEIGHTS):
            raise UsageError(_no_weights(folder))
        return [find(folder, WEIGHTS)]
    shards = read_json(folder, INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise FaultError(f"{folder / INDEX}: damaged: weight_map does not name files; get the file anew")
    return [find(folder, name) for name in sorted(set(shards.values()))]


def _no_weights(folder: Path) -> str:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    found = f", and {pickles[0]} is a pickle, which may run any code when it is opened" if pickles else ""
    return f"{folder}: {WEIGHTS} is missing{found}; {_MEND}"


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder` that takes its place when the block ends well, and goes when it does not."""
    folder = folder.absolute()
    mark = secrets.token_hex(4)
    building, old = (folder.with_name(f".{folder.name}.{mark}.{what}") for what in ("tmp", "old"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    building.mkdir()
    try:
        yield building
        sync_folder(building)
        if folder.exists():
            folder.rename(old)
        building.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def refuse_pickle(path: Path) -> None:
    """Stop at a single file that is a pickle by its ending.

    Raises:
        UsageError: names it and the mend.
    """
    if path.is_file() and path.suffix in PICKLES:
        raise UsageError(f"{path}: a pickle, which may run any code when it is opened; {_MEND}")
