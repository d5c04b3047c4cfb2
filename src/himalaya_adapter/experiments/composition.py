"""From the words of the command line to a run: the run's file, overrides; the schema judges."""

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from himalaya_adapter.documents import parse_document, read_document, without_interpolations
from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.experiments.keys import put
from himalaya_adapter.experiments.overrides import read_overrides
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.schema import Section, keys_of, parse

CONF = Path(__file__).parent.parent / "conf"
# A trial is the same run on a handful of items: enough to see every part work within a minute or two.
TRIAL_ITEMS = 16


@dataclass
class Command(Section):
    """The words of a line that are no keys of a run.

    Args:
        run: The name of a packaged run, or a YAML file.
        results_dir: Where the run's folder lies.
        mode: ``trial`` is the run on a handful of items.
        overwrite: Delete what an earlier run has left.
        backbone: The model in the place of the run's.
    """

    run: str
    results_dir: Annotated[str, Field(pattern=r"\S")] = "outputs"
    mode: Literal["full", "trial"] = "full"
    overwrite: bool = False
    backbone: str | None = None


@dataclass(frozen=True)
class Launch:
    """What a command line asks for: the run itself and the words that are about the command."""

    run: RunConfig
    results_dir: Path
    overwrite: bool


def run_names() -> list[str]:
    """Names of the run configs that come with the package."""
    return sorted(path.stem for path in (CONF / "run").glob("*.yaml"))


def compose_run(words: Sequence[str]) -> Launch:
    """Compose a run from ``run=NAME`` and any further overrides.

    Args:
        words: Such as ``run=demo-himalaya``, ``mode=trial``, ``results_dir=outputs``, ``training.learning_rate=1e-3``.
            ``run=`` takes a packaged name or the path of a YAML file. ``backbone=`` puts another model, with its own
            tokenizer and not quantised, in the place of the run's.

    Raises:
        HimalayaError: No or an unknown run, an unknown key, a value that its key does not take, an unknown mode.
    """
    overrides = read_overrides(words)
    own = {name: overrides.pop(name) for name in keys_of(Command) if name in overrides}  # a path is not YAML
    command = parse(Command, own, "the command line")
    packaged = command.run in run_names()
    if not packaged and not Path(command.run).is_file():
        raise unknown_name("run", command.run, run_names())
    here = f"run '{command.run}'"
    content = read_document(CONF / "run" / f"{command.run}.yaml" if packaged else Path(command.run))
    if not isinstance(content, dict):
        raise HimalayaError(f"{here}: expected a YAML file of keys with values")
    if command.backbone:
        put(content, "model.backbone.name", command.backbone)
        put(content, "model.backbone.quantisation", None)
        put(content, "dataset.tokenizer", None)
    for key, text in overrides.items():
        put(content, key, parse_document(text, f"{key}={text}"))
    run = parse(RunConfig, without_interpolations(content, here), here)
    _make_absolute(run)
    if command.mode == "trial":
        run.evaluation.rows = "last"
        run.dataset.max_samples_per_task = min(run.dataset.max_samples_per_task or TRIAL_ITEMS, TRIAL_ITEMS)
        run.dataset.max_test_samples_per_task = min(run.dataset.max_test_samples_per_task or TRIAL_ITEMS, TRIAL_ITEMS)
        run.training.report_to = "none"
    return Launch(run, Path(expanduser(command.results_dir)), command.overwrite)


def _make_absolute(run: RunConfig) -> None:
    """The folder of a backbone by its whole path: the run's config names the same one from any other folder."""
    name = run.model.backbone.name
    if "/" in name and Path(name).is_dir():
        run.model.backbone.name = str(Path(name).resolve())
        if run.dataset.tokenizer == name:
            run.dataset.tokenizer = run.model.backbone.name
