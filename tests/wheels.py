"""Small wheels that pip accepts, for tests of fetching."""

import zipfile
from collections.abc import Mapping
from pathlib import Path


def build_wheel(folder: Path, name: str, files: Mapping[str, bytes]) -> Path:
    """Write version 1.0 of the package ``name`` with ``files`` (place in the archive to content) into ``folder``."""
    folder.mkdir(exist_ok=True)
    stem = f"{name.replace('-', '_')}-1.0"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for place, content in files.items():
            wheel.writestr(place, content)
        info = f"{stem}.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path
