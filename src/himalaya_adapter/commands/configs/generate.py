"""``himalaya configs generate``."""

from pathlib import Path
from typing import Annotated

import typer

from himalaya_adapter.errors import HimalayaError


def command(
    plan: Annotated[str, typer.Argument(help="The plan: a YAML or JSON file, or the name of a packaged one.")],
    output: Annotated[Path, typer.Option(help="Folder.")] = Path("run_configs"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that have other content.")] = False,
    draft_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Let a language model behind this endpoint write them.")
    ] = None,
    draft_model: Annotated[str | None, typer.Option(metavar="NAME", help="The model's name there.")] = None,
) -> None:
    """Write the run configs of a plan."""
    from himalaya_adapter.backbones.catalogue import BACKBONES
    from himalaya_adapter.experiments.plans import (
        Catalogue,
        draft_configs,
        generate_configs,
        read_plan,
        write_configs,
    )
    from himalaya_adapter.streams import stream_names

    if (draft_url is None) != (draft_model is None):
        raise HimalayaError("a draft takes both --draft-url URL and --draft-model NAME")
    content = read_plan(plan)
    backbones = {name: getattr(source, "revision", None) for name, source in BACKBONES.items()}
    known = Catalogue(tuple(stream_names()), backbones)
    if draft_url is None or draft_model is None:
        written = generate_configs(content, known)
    else:
        written = draft_configs(content, known, draft_url, draft_model)
    for path in write_configs(written, output, overwrite=overwrite):
        print(path)
