"""PEFT's own tests: fetched when ours run, checked against a pinned hash, cached, no part of this repository."""

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
from filelock import FileLock

from himalaya_adapter.packages import NETWORK_SIGNS, file_sha256
from himalaya_adapter.storage import cache_folder

# Source distributions by version of PEFT. The tests have to be those of the installed version.
SDIST_SHA256 = {"0.21.2": "b803ccfb3f3f316004d850284306687833a2235ea278fb56abc856203456142e"}
PACKAGE = "peft_tests"
# pip says the last one when it has been told to use no index, or an index without source distributions.
NO_INDEX_SIGNS = (*NETWORK_SIGNS, "No matching distribution found")


def import_tests(module: str) -> ModuleType:
    """Import one of PEFT's test modules; skips the calling test module if its source cannot be fetched."""
    folder = tests_folder()
    if folder is None:
        pytest.skip("PEFT's own tests: not in the cache and no package index reachable", allow_module_level=True)
    if str(folder.parent) not in sys.path:
        sys.path.append(str(folder.parent))
    if importlib.util.find_spec("diffusers") is not None:
        return importlib.import_module(f"{PACKAGE}.{module}")
    sys.modules["diffusers"] = _without_diffusers()
    try:
        return importlib.import_module(f"{PACKAGE}.{module}")
    finally:
        del sys.modules["diffusers"]


@functools.cache  # several modules ask, and an index that does not answer takes its time
def tests_folder() -> Path | None:
    """The folder of PEFT's tests in the cache, fetched if it is not there; ``None`` if no index can be reached."""
    version = importlib.metadata.version("peft")
    if version not in SDIST_SHA256:
        pytest.fail(f"no hash is pinned for the source of peft {version}: add it to SDIST_SHA256", pytrace=False)
    folder = cache_folder() / f"peft-{version}-{SDIST_SHA256[version][:12]}" / PACKAGE
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # several workers collect at the same time
        if folder.is_dir():
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
            sdist = _download(version, Path(scratch))
            if sdist is None:
                return None
            os.replace(_unpack(sdist, Path(scratch)), folder)  # whole or absent, even if interrupted
    return folder


def _download(version: str, folder: Path) -> Path | None:
    """Let pip fetch the source distribution from whatever index it is configured for.

    pip has no way to fetch a source distribution without asking its build for metadata. It does so after it has
    checked the hash: no other code runs than that of the very release that is installed anyway, and its build tool.
    """
    pins = folder / "requirements.txt"
    pins.write_text(f"peft=={version} --hash=sha256:{SDIST_SHA256[version]}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=peft", "--require-hashes"]
    command += ["--disable-pip-version-check", "--no-input", "--retries=1", "-r", str(pins), "-d", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        if any(sign in result.stderr for sign in NO_INDEX_SIGNS):
            return None
        pytest.fail(f"pip could not fetch the source of peft {version}:\n{result.stderr}", pytrace=False)
    sdist = folder / f"peft-{version}.tar.gz"
    assert file_sha256(sdist) == SDIST_SHA256[version], "pip has kept an archive of another hash"
    return sdist


def _unpack(sdist: Path, folder: Path) -> Path:
    """Unpack the tests of the archive, and nothing else of it."""
    with tarfile.open(sdist) as archive:
        tests = [member for member in archive if member.isfile() and member.name.split("/")[1:2] == ["tests"]]
        archive.extractall(folder, tests, filter="data")
    return folder / sdist.name.removesuffix(".tar.gz") / "tests"


def _without_diffusers() -> ModuleType:
    """A stand-in: PEFT's common tests import one name of diffusers, which only tests of image models use."""
    stand_in = ModuleType("diffusers")
    stand_in.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})  # type: ignore[attr-defined]
    return stand_in
