"""From the words of the command line to a run: the run's file, overrides; the schema judges."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from himalaya_adapter.documents import read_document, without_interpolations
from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.experiments.keys import put
from himalaya_adapter.experiments.overrides import read_overrides
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.schema import parse

CONF = Path(__file__).parent.parent / "conf"
MODES = ("full", "trial")
# A trial is the same run on a handful of items: enough to see every part work within a minute or two.
TRIAL_ITEMS = 16


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
    texts = {key: text for key, _, text in (word.partition("=") for word in words)}  # a path is not YAML
    name = texts.get("run")
    if name is None:
        raise HimalayaError(f"no run named; add run=NAME (known: {', '.join(run_names())})")
    packaged = name in run_names()
    if not packaged and not Path(name).is_file():
        raise unknown_name("run", name, run_names())
    mode, overwrite = overrides.pop("mode", "full"), overrides.pop("overwrite", False)
    if mode not in MODES:
        raise unknown_name("mode", str(mode), MODES)
    if not isinstance(overwrite, bool):
        raise HimalayaError(f"overwrite={overwrite}: expected true or false")
    here = f"run '{name}'"
    content = read_document(CONF / "run" / f"{name}.yaml" if packaged else Path(name))
    if not isinstance(content, dict):
        raise HimalayaError(f"{here}: expected a YAML file of keys with values")
    without_interpolations(content, here)
    if texts.get("backbone"):
        _override(content, "model.backbone.name", texts["backbone"])
        _override(content, "model.backbone.quantisation", None)
        _override(content, "dataset.tokenizer", None)
    for key, value in overrides.items():
        if key not in ("run", "results_dir", "backbone"):
            _override(content, key, value)
    run = parse(RunConfig, content, here)
    _make_absolute(run)
    if mode == "trial":
        run.evaluation.rows = "last"
        run.dataset.max_samples_per_task = min(run.dataset.max_samples_per_task or TRIAL_ITEMS, TRIAL_ITEMS)
        run.dataset.max_test_samples_per_task = min(run.dataset.max_test_samples_per_task or TRIAL_ITEMS, TRIAL_ITEMS)
        run.training.report_to = "none"
    return Launch(run, _folder(texts.get("results_dir", "outputs")), overwrite)


def _folder(text: str) -> Path:
    """The folder of ``results_dir=``."""
    try:
        if text:
            return Path(text).expanduser()
    except RuntimeError:  # as pathlib says that there is no such user
        pass
    raise HimalayaError(f"results_dir={text}: expected a folder")


def _override(content: dict[str, Any], key: str, value: Any) -> None:
    """Put a value in its place. Keys join those of a section; a whole range of a search, one with a type, is new."""
    if isinstance(value, dict) and value and "type" not in value:
        for name, entry in value.items():
            _override(content, f"{key}.{name}", entry)
    else:
        put(content, key, value)


def _make_absolute(run: RunConfig) -> None:
    """The folder of a backbone by its whole path: the run's config names the same one from any other folder."""
    name = run.model.backbone.name
    if "/" in name and Path(name).is_dir():
        run.model.backbone.name = str(Path(name).resolve())
        if run.dataset.tokenizer == name:
            run.dataset.tokenizer = run.model.backbone.name
