"""Write run configs from an experiment plan, or check some."""

from pathlib import Path
from typing import Annotated

import typer

from himalaya_adapter.errors import HimalayaError, one_line

app = typer.Typer(help=__doc__, no_args_is_help=True)


@app.command()
def generate(
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


@app.command()
def validate(files: list[Path]) -> None:
    """Check run configs, one line for each file."""
    from himalaya_adapter.experiments.plans import read_runs
    from himalaya_adapter.methods.construction import run_method

    wrong = 0
    for path in files:
        try:
            for run in read_runs(path):
                run_method(run)
            print(f"{path}: ok")
        except HimalayaError as error:
            wrong += 1
            print(f"{path}: {one_line(error)}")
    if wrong:
        raise HimalayaError(f"{wrong} of {len(files)} files hold a run config that is not valid")
