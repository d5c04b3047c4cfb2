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
    from himalaya_adapter.experiments import plans

    if (draft_url is None) != (draft_model is None):
        raise HimalayaError("a draft takes both --draft-url URL and --draft-model NAME")
    text, content = plans.read_plan(plan)
    try:
        if draft_url is None or draft_model is None:
            configs = plans.generate_configs(content, strict=strict)
            contents = [plans.content_of(values) for values in configs]
        else:
            configs, contents = [], plans.draft_configs(content, text, draft_url, draft_model)
    except HimalayaError as error:
        raise HimalayaError(f"plan {plan}: {error}") from error
    paths = plans.write_configs(contents, output, overwrite=overwrite)
    for values in configs:
        for key, (value, origin) in values.items():
            print(f"{values['run_id'].value}: {key} = {value}  # {origin}")
    for path in paths:
        print(path)
