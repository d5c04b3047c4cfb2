"""Brings the archives of a stream into the cache, with one progress display over all of them."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from himalaya_adapter import packages
from himalaya_adapter.streams.items import Archive


def fetch_archives(archives: Mapping[str, Archive], *, offline: bool = False) -> dict[str, Path]:
    """Return where each archive lies, fetching those that are not in the cache; shows progress if there are any.

    An archive enters the cache whole and with its hash checked, so a fetch that was interrupted goes on with the
    archive that it was at.

    Raises:
        HimalayaError: As ``packages.fetch_archive``.
    """
    missing = [one for one in archives.values() if not packages.archive_path(one.requirement).is_file()]
    paths = {}
    with Progress(console=Console(stderr=True), disable=offline or not missing) as progress:
        bar = progress.add_task("", total=sum(one.megabytes for one in missing))
        for name, one in archives.items():
            progress.update(bar, description=f"{one.requirement}, {one.megabytes:.0f} MB")
            paths[name] = packages.fetch_archive(one.requirement, one.sha256, offline=offline, progress=False)
            progress.advance(bar, one.megabytes if one in missing else 0)
        progress.update(bar, description=f"{len(missing)} archives")
    return paths
