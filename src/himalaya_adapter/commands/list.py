"""``himalaya list``."""

from collections.abc import Iterator
from typing import Literal


def command(what: Literal["runs", "methods", "backbones", "streams", "keys"]) -> None:
    """What comes with the package: runs, methods, backbones, streams, or the keys of a run."""
    lines = {"runs": _runs, "methods": _methods, "backbones": _backbones, "streams": _streams, "keys": _keys}
    for line in lines[what]():
        print(line)


def _runs() -> Iterator[str]:
    from himalaya_adapter.experiments import compose_run, run_names

    for name in run_names():
        run = compose_run([f"run={name}"]).run
        yield f"{name}: {run.method_name} on {run.dataset.name}, {run.model.backbone.name}"


def _methods() -> Iterator[str]:
    from himalaya_adapter.registry import METHODS

    yield from METHODS
    yield "and any other method of PEFT, by the name of its PeftType"


def _backbones() -> Iterator[str]:
    from himalaya_adapter.backbones.catalogue import BACKBONES, PackagedGguf

    for name, source in BACKBONES.items():
        terms = source.terms if isinstance(source, PackagedGguf) else None
        yield f"{name} (under terms of use: {terms})" if terms else name
    yield "and any causal language model, by its folder or its id on the hub"


def _streams() -> Iterator[str]:
    from himalaya_adapter.streams.catalogue import read_definition, stream_names

    for name in stream_names():
        yield f"{name}: {read_definition(name).description}"


def _keys() -> Iterator[str]:
    from himalaya_adapter.experiments import RunConfig
    from himalaya_adapter.experiments.schema import keys_of

    for key in keys_of(RunConfig).values():
        yield f"{key.path} ({key.expected}; default {key.default_text}): {key.meaning.replace('``', '')}"
