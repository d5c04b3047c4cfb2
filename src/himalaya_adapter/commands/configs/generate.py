"""``himalaya configs generate``."""

from pathlib import Path
from typing import Annotated

import typer

from himalaya_adapter.errors import HimalayaError


def command(
    plan: Annotated[str, typer.Argument(help="The plan: a YAML or JSON file, or the name of a packaged one.")],
    output: Annotated[Path, typer.Option(help="Folder.")] = Path("run_configs"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that have other content.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse a value that the plan does not give.")] = False,
    draft_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Let a language model behind this endpoint write them.")
    ] = None,
    draft_model: Annotated[str | None, typer.Option(metavar="NAME", help="The model's name there.")] = None,
) -> None:
    """Write the run configs of a plan, and say of every key where its value comes from."""
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
    text, content = read_plan(plan)
    known = Catalogue(tuple(stream_names()), tuple(BACKBONES))
    try:
        if draft_url is None or draft_model is None:
            written = generate_configs(content, known, strict=strict)
        else:
            written = draft_configs(content, text, known, draft_url, draft_model)
    except HimalayaError as error:
        raise HimalayaError(f"plan {plan}: {error}") from error
    paths = write_configs(written, output, overwrite=overwrite)
    for config in written:
        for key, value, origin in config.origins:
            print(f"{config.run_id}: {key} = {value}  # {origin}")
    for path in paths:
        print(path)
