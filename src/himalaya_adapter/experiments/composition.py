"""From the words of the command line to a run: defaults, the run's file, overrides; the schema judges."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException, ValidationError
from yaml import YAMLError

from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.experiments.key_table import key_named
from himalaya_adapter.experiments.keys import flattened, leaf_keys
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.search_config import SearchRange

CONF = Path(__file__).parent.parent / "conf"
MODES = ("full", "trial")
COMMAND_KEYS = ("mode", "results_dir", "overwrite", "backbone")
# A trial is the same run on a handful of items: enough to see every part work within a minute or two.
TRIAL_ITEMS = 16
# PyYAML follows YAML 1.1, to which 2e-4 (no dot) is text; a run config's author means the number.
DOTLESS_FLOAT = re.compile(r"[+-]?\d+[eE][+-]?\d+")


@dataclass(frozen=True)
class Launch:
    """What a command line asks for: the run itself and the words that are about the command."""

    run: RunConfig
    results_dir: Path
    overwrite: bool


def run_names() -> list[str]:
    """Names of the run configs that come with the package."""
    return sorted(path.stem for path in (CONF / "run").glob("*.yaml"))


def compose_run(overrides: Sequence[str]) -> Launch:
    """Compose a run from ``run=NAME`` and any further overrides, in Hydra's syntax.

    Args:
        overrides: Words such as ``run=demo-himalaya``, ``mode=trial``, ``results_dir=outputs``,
            ``training.learning_rate=1e-3``. ``run=`` takes a packaged name or the path of a YAML file. ``backbone=``
            puts another model, with its own tokenizer and not quantised, in the place of the run's.

    Raises:
        HimalayaError: No or an unknown run, an unknown key, a value of the wrong type, an unknown mode.
    """
    for word in overrides:
        if not _key(word) or "=" not in word:
            raise HimalayaError(f"'{word}' is not an override; write KEY=VALUE, for example run=demo-himalaya")
    words = dict(word.split("=", 1) for word in overrides)
    name = words.get("run")
    if name is None:
        raise HimalayaError(f"no run named; add run=NAME (known: {', '.join(run_names())})")
    if name not in run_names() and not Path(name).is_file():
        raise unknown_name("run", name, run_names())
    rest = [word for word in overrides if not word.startswith("run=")]
    mode = words.get("mode", "full")
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    path = Path(name) if name not in run_names() else CONF / "run" / f"{name}.yaml"
    given: list[DictConfig] = []
    try:
        asked = OmegaConf.from_dotlist([word for word in rest if _key(word) == "overwrite"])
        command = OmegaConf.merge(OmegaConf.load(CONF / "config.yaml"), asked)
        changes = [word for word in rest if _key(word) not in COMMAND_KEYS]
        written = OmegaConf.load(path)
        if not isinstance(written, DictConfig):
            raise HimalayaError(f"run '{name}': expected a YAML file of keys with values")
        given = [_numbers(written), _backbone(words.get("backbone")), _numbers(OmegaConf.from_dotlist(changes))]
        _replace_ranges(given[0], given[-1])
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), *given)
        run = cast(RunConfig, OmegaConf.to_object(merged))
    except ConfigKeyError as error:
        keys = leaf_keys(OmegaConf.structured(RunConfig))
        wrong = str(error.full_key)  # stops at the first unknown part; the word itself says the whole key
        wrong = next((key for key in words if key.startswith(f"{wrong}.")), wrong)
        if wrong.startswith("optuna.search_space."):
            keys += [f"{wrong.rpartition('.')[0]}.{one.name}" for one in fields(SearchRange)]
        section = [key for key in keys if key.rpartition(".")[0] == wrong.rpartition(".")[0]]
        raise unknown_name(f"key of run '{name}'", wrong, section if "." in wrong and section else keys) from error
    except (ValidationError, MissingMandatoryValue) as error:
        raise HimalayaError(_misfit(error, name, given)) from error
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError) as error:
        key = getattr(error, "full_key", None)
        where = f"key '{key}' of run '{name}': " if key else f"run '{name}': "
        # OmegaConf appends lines about its own types.
        reason = str(error) if isinstance(error, YAMLError) else str(error).splitlines()[0]
        raise HimalayaError(where + " ".join(reason.split())) from error
    if not isinstance(command.overwrite, bool):
        raise HimalayaError(f"overwrite={command.overwrite}: expected true or false")
    results_dir = Path(words.get("results_dir") or command.results_dir).expanduser()
    if mode == "trial":
        run.evaluation.rows = "last"
        run.dataset.max_samples_per_task = min(run.dataset.max_samples_per_task or TRIAL_ITEMS, TRIAL_ITEMS)
        run.dataset.max_test_samples_per_task = min(run.dataset.max_test_samples_per_task or TRIAL_ITEMS, TRIAL_ITEMS)
        run.training.report_to = "none"
    return Launch(run, results_dir, command.overwrite)


def _key(word: str) -> str:
    return word.split("=", 1)[0]


def _backbone(name: str | None) -> DictConfig:
    """What ``backbone=NAME`` changes."""
    other = {"model": {"backbone": {"name": name, "quantisation": None}}, "dataset": {"tokenizer": None}}
    return OmegaConf.create(other if name else {})


def _replace_ranges(written: DictConfig, changes: DictConfig) -> None:
    """A whole range of a search, one with a type, takes the place of the run's: its fields are not mixed with it."""
    ranges = OmegaConf.select(changes, "optuna.search_space")
    before = OmegaConf.select(written, "optuna.search_space")
    for name, values in ranges.items() if ranges and before else ():
        if isinstance(values, DictConfig) and "type" in values:
            before.pop(name, None)


def _misfit(error: OmegaConfBaseException, run: str, given: Sequence[DictConfig]) -> str:
    """Which value the schema refuses: its key, what was found, what is allowed."""
    found: dict[str, Any] = {}
    for config in given:
        found |= flattened(OmegaConf.to_container(config))
    # A section that is a plain value: OmegaConf does not say which.
    sections = (path for path in found if (known := key_named(path)) and known.section)
    wrong = next(sections, error.full_key)
    key = key_named(str(wrong))
    if key is None:
        return f"key '{wrong}' of run '{run}': {' '.join(str(error).splitlines()[0].split())}"
    if wrong not in found:
        return f"key '{wrong}' of run '{run}' is missing; expected {key.expected}"
    return f"key '{wrong}' of run '{run}': found {json.dumps(found[wrong], default=str)}, expected {key.expected}"


def _numbers(config: DictConfig) -> DictConfig:
    """Read text such as ``2e-4`` as the number that it is meant to be."""

    def convert(value: object) -> object:
        if isinstance(value, dict):
            return {key: convert(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [convert(entry) for entry in value]
        if isinstance(value, str) and DOTLESS_FLOAT.fullmatch(value):
            return float(value)
        return value

    return OmegaConf.create(cast(dict[str, Any], convert(OmegaConf.to_container(config))))
