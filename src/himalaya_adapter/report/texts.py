"""The titles of figures and tables, and how they are read: ``templates/texts.yaml``."""

from functools import cache
from importlib.resources import files

import yaml

TEMPLATES = files("himalaya_adapter.report") / "templates"


@cache
def _texts() -> dict[str, tuple[str, str]]:
    return dict(yaml.safe_load(TEMPLATES.joinpath("texts.yaml").read_text(encoding="utf-8")))


def text_of(topic: str) -> tuple[str, str]:
    """The title of a figure or a table, and how it is read."""
    title, reading = _texts()[topic]
    return title, reading
