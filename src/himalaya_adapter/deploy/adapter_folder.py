"""A saved adapter on its backbone, ready to answer: from a run, from a folder of its own, or from the hub."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from himalaya_adapter.backbones import Backbone, load_backbone
from himalaya_adapter.backbones.shape import SIZES, sizes_of
from himalaya_adapter.errors import HimalayaError, one_line, unknown_name
from himalaya_adapter.identity import COMPLETE, SEAL, files_identity, is_complete, opened
from himalaya_adapter.methods.construction import quiet_peft
from himalaya_adapter.methods.continual import continual
from himalaya_adapter.methods.release import CARD_FACTS, CARD_FILE, CONFIG_FILE, TASKS_FILE, WEIGHTS_FILE
from himalaya_adapter.storage import read_json

logger = logging.getLogger(__name__)
TASKS_FORMAT = 1
NEW = "new"  # folder of a new state, inside of what is not finished
IN_A_RUN = ("adapter", "release")
OURS = ("himalaya-adapter", "base_model:adapter:")  # in every model card that this package writes


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter on its backbone.

    Args:
        model: Backbone and adapter, in evaluation mode.
        tokenizer: The backbone's tokenizer.
        tasks: Names of the tasks that the adapter has learnt, in their order: as the adapter itself says where it
            knows, else as was written beside it; none where nobody wrote them down.
        backbone: The name under which `load_backbone` finds the backbone.
        folder: Where the adapter's files lie.
    """

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    tasks: tuple[str, ...]
    backbone: str
    folder: Path

    def chosen_tasks(self, names: Sequence[str]) -> tuple[str, ...]:
        """These tasks without repetitions; all that the adapter has learnt if none is named.

        Raises:
            HimalayaError: A task that it has not learnt, or none is named and nobody wrote down which it has learnt.
        """
        for name in names:
            if self.tasks and name not in self.tasks:
                raise unknown_name("task", name, self.tasks)
        chosen = tuple(dict.fromkeys(names)) or self.tasks
        if not chosen:
            raise HimalayaError(f"the adapter in {self.folder} does not say what it has learnt: name it with --task")
        return chosen


@dataclass(frozen=True)
class _Saved:
    """What is written about an adapter: where it lies, what it has learnt, which model it was trained on."""

    folder: Path
    tasks: tuple[str, ...]
    backbone: str | None
    revision: str | None
    quantisation: str | None
    dtype: str = "auto"
    sizes: dict[str, int] = field(default_factory=dict)


def load_adapter(
    folder: str | Path,
    *,
    task: str | None = None,
    dtype: str | None = None,
    backbone: str | None = None,
    trainable: bool = False,
) -> LoadedAdapter:
    """Load an adapter and its backbone.

    Args:
        folder: A run's folder, or the ``adapter`` or ``release`` folder inside it (``adapter`` is the default); a copy
            of one of these two anywhere else; or, as a string, the id ``owner/name`` of one on the hub.
        task: The task to switch to, if the method knows tasks; later calls of ``model.set_task`` switch again.
        dtype: Precision of the backbone, without quantisation; by default it is loaded as for the run.
        backbone: The backbone's name or folder, where it is another one than the adapter names.
        trainable: Whether it is to learn more, which it may only on the very weights that it has learnt on.

    Raises:
        HimalayaError: No adapter there, a task that it has not learned, another backbone, or a damaged adapter.
    """
    saved = _find(folder)
    if task is not None and saved.tasks and task not in saved.tasks:
        raise unknown_name("task", task, saved.tasks)  # before the backbone is loaded for nothing
    quantisation, name = saved.quantisation if dtype is None else None, backbone or saved.backbone
    if name is None:
        raise HimalayaError(
            f"the adapter in {saved.folder} does not say which model it was trained on: name it (--backbone)"
        )
    try:
        loaded = load_backbone(name, quantisation=quantisation, dtype=dtype or saved.dtype)
    except HimalayaError as error:
        if backbone is not None:
            raise
        raise HimalayaError(
            f"the adapter in {saved.folder} was trained on '{saved.backbone}', which is not here: {error}; "
            "say with --backbone where it is"
        ) from error
    _check_backbone(loaded, saved, same_weights=trainable)
    try:
        with quiet_peft():
            model = PeftModel.from_pretrained(loaded.model, saved.folder, is_trainable=trainable).eval()
    except (
        OSError,
        ValueError,
        RuntimeError,
        SafetensorError,
        KeyError,
        TypeError,
        AttributeError,
        re.error,
    ) as error:
        reason = one_line(error)
        raise HimalayaError(f"the adapter in {saved.folder} could not be loaded: {reason}") from error
    method = continual(model)
    if task is not None:
        method.set_task(task)
    return LoadedAdapter(model, loaded.tokenizer, tuple(method.tasks) or saved.tasks, loaded.name, saved.folder)


def _find(folder: str | Path) -> _Saved:
    place = Path(folder)
    run, name = (place.parent, place.name) if place.name in IN_A_RUN else (place, IN_A_RUN[0])
    if (run / "metrics.json").is_file() and (run / "config.yaml").is_file():
        return _in_run(run, name)
    place = newest_state(place)
    if not (place / CONFIG_FILE).is_file():
        on_hub = isinstance(folder, str) and len(place.parts) == 2 and not place.is_absolute()
        if not on_hub or place.parent.exists():  # a slip in the name of a folder here is no stranger's adapter there
            raise HimalayaError(
                f"{folder} is not a finished run: it has no {name}/ beside metrics.json; nor is it an adapter's "
                f"folder: it has no {CONFIG_FILE}"
            )
        place = _from_hub(str(folder))
    return _alone(place)


def unfinished_place(folder: Path) -> Path:
    """The hidden folder beside an adapter where `himalaya learn` keeps what is not finished."""
    place = folder.resolve()  # "." and ".." have no name
    return place.parent / f".{place.name}.learning"


def newest_state(folder: Path) -> Path:
    """Where an adapter's newest whole state lies: a killed process may have had no time to move it to its place."""
    new = unfinished_place(folder) / NEW
    return new if is_complete(new) else folder


def _in_run(run: Path, name: str) -> _Saved:
    if not (run / name).is_dir():
        raise HimalayaError(f"{run / name} is not a finished run's: it has no {name}/ beside metrics.json")
    _check_weights(run / name)
    try:
        written = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["model"]["backbone"]
        environment = read_json(run / "environment.json") if (run / "environment.json").is_file() else {}
        return _Saved(
            folder=run / name,
            tasks=tuple(entry["name"] for entry in opened(read_json(run / "metrics.json"))["tasks"]),
            backbone=written["name"],
            revision=environment.get("backbone_revision"),
            quantisation="4-bit" if written["quantisation"] else None,
            dtype=written["dtype"],
            sizes=environment.get("backbone_sizes", {}),
        )
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise HimalayaError(
            f"metrics.json, config.yaml or environment.json of the run in {run} is damaged: give {run / name}, copied "
            "out of the run, or repeat the run with overwrite=true"
        ) from error


def _alone(folder: Path) -> _Saved:
    """What the folder says of itself: its list of tasks or model card, else PEFT's config with the backbone only."""
    _check_weights(folder)
    facts = _facts(folder)
    told = facts["backbone"]
    try:
        config = read_json(folder / CONFIG_FILE)
        name = told.get("name") or config["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise HimalayaError(f"the adapter in {folder} could not be loaded: {CONFIG_FILE} is damaged") from error
    return _Saved(
        folder=folder,
        tasks=tuple(facts["tasks"]),
        backbone=name or None,
        revision=told.get("revision", config.get("revision")),
        quantisation="4-bit" if told.get("quantisation") else None,
        sizes={size: told[size] for size in SIZES if size in told},
    )


def _facts(folder: Path) -> dict[str, Any]:
    """``tasks`` and ``backbone`` as the list of tasks or the card's front matter says; empty if neither is ours."""
    if (folder / TASKS_FILE).is_file():
        return learnt_facts(folder)
    path = folder / CARD_FILE
    try:
        facts = _card_facts(path) if path.is_file() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise HimalayaError(f"{path} is damaged: {one_line(error)}") from error
    told: dict[str, Any] = {"tasks": [], "backbone": {}} | (facts if isinstance(facts, dict) else {})
    named = isinstance(told["tasks"], list) and all(isinstance(name, str) for name in told["tasks"])
    if not named or not isinstance(told["backbone"], dict):
        raise HimalayaError(f"{path} is damaged: expected tasks and a backbone")
    return told


def learnt_facts(folder: Path) -> dict[str, Any]:
    """What ``tasks.json`` says of the adapter beside it: ``backbone``, and of each task its record under ``tasks``.

    Raises:
        HimalayaError: It is not what `himalaya learn` has written together with the adapter's two files.
    """
    path = folder / TASKS_FILE
    try:
        facts = opened(read_json(path), needs_hash=True)
        if facts["format"] > TASKS_FORMAT:
            raise ValueError("it was written by a newer himalaya-adapter: update it")
        if facts["files"] != files_identity(folder / name for name in (CONFIG_FILE, WEIGHTS_FILE)):
            raise ValueError(f"it was not written with the {CONFIG_FILE} and {WEIGHTS_FILE} beside it")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = one_line(error)
        raise HimalayaError(
            f"{path} is damaged: {reason}; put back what was there, or delete it: the adapter keeps its tasks, their "
            "templates and scores are lost"
        ) from error
    return facts


def _card_facts(card: Path) -> Any:
    """What the front matter of a model card says, None if the card is not one of ours."""
    text = card.read_text(encoding="utf-8")
    if not text.strip():
        raise ValueError("it is empty")
    facts = ModelCard.load(card).data.to_dict().get(CARD_FACTS)
    ours = all(sign in text for sign in OURS) or f"\n{CARD_FACTS}:" in text
    if ours and not isinstance(facts, dict):
        raise ValueError(f"'{CARD_FACTS}' is missing")
    if ours and SEAL not in facts:
        raise ValueError(
            "it has no hash of what it says: it was edited, or written by version 0.1; put back what was there, or "
            "delete it, and name the backbone (--backbone)"
        )
    return opened(facts) if isinstance(facts, dict) else facts


def _from_hub(repository: str) -> Path:
    """The adapter's three files out of the hub or its cache; never a pickled file."""
    wanted = [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=wanted))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = one_line(error)
        raise HimalayaError(
            f"{repository} is no folder here, and no adapter of the hub could be had: {reason}"
        ) from error
    if not (folder / CONFIG_FILE).is_file():
        raise HimalayaError(f"{repository} on the hub holds no adapter: it has no {CONFIG_FILE}")
    return folder


def _check_weights(folder: Path) -> None:
    if not (folder / WEIGHTS_FILE).is_file():  # PEFT would look for a pickled file next
        raise HimalayaError(f"the adapter in {folder} has lost its file {WEIGHTS_FILE}")
    if (folder / COMPLETE).is_file() and not is_complete(folder):
        raise HimalayaError(f"the adapter in {folder} is damaged: its files are not those of {COMPLETE}")


def _check_backbone(loaded: Backbone, saved: _Saved, same_weights: bool) -> None:
    """Refuse a model of other sizes; say so, or refuse it too, if its weights may be others."""
    found = sizes_of(loaded.model.config)
    for size, expected in saved.sizes.items():
        if found.get(size) != expected:
            raise HimalayaError(
                f"the adapter in {saved.folder} is for another backbone: it was trained on {saved.backbone} with "
                f"{size}={expected}, {loaded.name} has {found.get(size)}"
            )
    if saved.revision is not None and loaded.revision != saved.revision:
        difference = f"{loaded.revision} now, {saved.revision} then"
        if same_weights:
            raise HimalayaError(
                f"the weights of {loaded.name} are not those that the adapter in {saved.folder} has learnt on, and "
                f"what it knows needs those: {difference}"
            )
        logger.warning("%s is not what the adapter was trained on: %s", loaded.name, difference)
