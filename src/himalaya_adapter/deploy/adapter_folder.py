"""A saved adapter on its backbone, ready to answer: from a run, from a folder of its own, or from the hub."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, snapshot_download
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from himalaya_adapter.backbones import Backbone, load_backbone
from himalaya_adapter.backbones.shape import SIZES, sizes_of
from himalaya_adapter.errors import HimalayaError, one_line
from himalaya_adapter.identity import COMPLETE, files_identity, is_complete, opened
from himalaya_adapter.methods.construction import quiet_peft
from himalaya_adapter.methods.continual import continual
from himalaya_adapter.methods.himalaya import HimalayaConfig
from himalaya_adapter.methods.release import CARD_FACTS, CARD_FILE, CONFIG_FILE, TASKS_FILE, WEIGHTS_FILE
from himalaya_adapter.names import known_task
from himalaya_adapter.storage import read_json

logger = logging.getLogger(__name__)
TASKS_FORMAT = 1
NEW = "new"  # folder of a new state, inside of what is not finished
IN_A_RUN = ("adapter", "release")
# What reading a damaged file raises.
DAMAGES = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError),
    *(yaml.YAMLError, SafetensorError, re.error),
)
OURS = ("himalaya-adapter", "base_model:adapter:")  # in every model card that this package writes


@contextmanager
def damage_told(what: object, mend: str = "put back what was there") -> Iterator[None]:
    """Say in one line that what is read inside is damaged, why, and what to do.

    Raises:
        HimalayaError: It is.
    """
    try:
        yield
    except HimalayaError:  # it says more
        raise
    except DAMAGES as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else one_line(error)
        raise HimalayaError(f"{what} is damaged: {reason}; {mend}") from error


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
        revision: What exactly was loaded as the backbone.
    """

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    tasks: tuple[str, ...]
    backbone: str
    folder: Path
    revision: str | None = None


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
    place, facts = _find(folder)
    if task is not None and facts["tasks"]:
        task = known_task(task, facts["tasks"])  # before the backbone is loaded for nothing
    told = _with_config(place, facts["backbone"])
    name = backbone or told["name"]
    if not name:
        raise HimalayaError(f"the adapter in {place} does not say which model it was trained on: name it (--backbone)")
    quantisation = "4-bit" if told.get("quantisation") and dtype is None else None
    try:
        loaded = load_backbone(name, quantisation=quantisation, dtype=dtype or told.get("dtype", "auto"))
    except HimalayaError as error:
        if backbone is not None:
            raise
        raise HimalayaError(
            f"the backbone '{name}' of the adapter in {place} is not here: {error}; say with --backbone where it is"
        ) from error
    _check_backbone(loaded, told, place, same_weights=trainable)
    try:
        with quiet_peft():
            model = PeftModel.from_pretrained(loaded.model, place, is_trainable=trainable).eval()
    except DAMAGES as error:
        raise HimalayaError(f"the adapter in {place} could not be loaded: {one_line(error)}") from error
    method = continual(model)
    if task is not None:
        method.set_task(task)
    known = tuple(method.tasks) or tuple(facts["tasks"])
    return LoadedAdapter(model, loaded.tokenizer, known, loaded.name, place, loaded.revision)


def load_for_export(
    folder: Path, tasks: Sequence[str], placement: str, backbone: str | None, dtype: str | None = None
) -> LoadedAdapter:
    """Load an adapter of HIMALAYA that is to become something else, with those of its ``tasks`` that are chosen.

    Args:
        folder: A run's folder, the ``adapter`` or ``release`` folder in it, or a copy of one of these.
        tasks: Which tasks; all that it has learnt if none is named.
        placement: What its config must say.
        backbone: As for `load_adapter`.
        dtype: As for `load_adapter`.

    Raises:
        HimalayaError: As `load_adapter`; an unknown task; another method or placement; a task that is still being
            learnt, or modules that were trained beside the adapter.
    """
    adapter = load_adapter(folder, dtype=dtype, backbone=backbone)
    config = adapter.model.peft_config["default"]
    if not isinstance(config, HimalayaConfig):
        raise HimalayaError(
            f"the adapter in {adapter.folder} is of method {config.peft_type.value}: only one of HIMALAYA is "
            "exported; merge_and_unload() merges what can be merged"
        )
    if config.placement != placement:
        raise HimalayaError(
            f"the adapter in {adapter.folder} has placement='{config.placement}': --format lora exports 'weights', "
            "the other formats 'residual_stream'"
        )
    if config.modules_to_save:
        whole = ", ".join(config.modules_to_save)
        raise HimalayaError(f"the adapter in {adapter.folder} has trained {whole} whole, which no export holds")
    if adapter.model.base_model.himalaya_shared["default"].atoms.any():
        raise HimalayaError(
            f"the adapter in {adapter.folder} was saved while a task was learnt: call model.end_task(), then save it"
        )
    if not adapter.tasks:
        raise HimalayaError(f"the adapter in {adapter.folder} has learnt no task")
    chosen = dict.fromkeys(known_task(name, adapter.tasks) for name in tasks or adapter.tasks)
    return replace(adapter, tasks=tuple(chosen))


def _find(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """Where an adapter's files lie; and of it the ``tasks``, and of the ``backbone`` what is written beside it."""
    place = Path(folder)
    run, name = (place.parent, place.name) if place.name in IN_A_RUN else (place, IN_A_RUN[0])
    if (run / "metrics.json").is_file() and (run / "config.yaml").is_file():
        return run / name, _facts_of_run(run, name)
    place = newest_state(place)
    if not (place / CONFIG_FILE).is_file():
        on_hub = isinstance(folder, str) and len(place.parts) == 2 and not place.is_absolute()
        if not on_hub or place.parent.exists():  # a slip in the name of a folder here is no stranger's adapter there
            raise HimalayaError(
                f"{folder} is not a finished run: it has no {name}/ beside metrics.json; nor is it an adapter's "
                f"folder: it has no {CONFIG_FILE}"
            )
        place = _from_hub(str(folder))
    return place, _facts(place)


def unfinished_place(folder: Path) -> Path:
    """The hidden folder beside an adapter where `himalaya learn` keeps what is not finished."""
    place = folder.resolve()  # "." and ".." have no name
    return place.parent / f".{place.name}.learning"


def newest_state(folder: Path) -> Path:
    """Where an adapter's newest whole state lies: a killed process may have had no time to move it to its place."""
    new = unfinished_place(folder) / NEW
    return new if is_complete(new) else folder


def _facts_of_run(run: Path, name: str) -> dict[str, Any]:
    """The facts of a finished run's adapter or release, as `_facts`."""
    files = f"metrics.json, config.yaml or environment.json of the run in {run}"
    with damage_told(files, f"give {run / name}, copied out of the run, or repeat the run with overwrite=true"):
        written = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["model"]["backbone"]
        environment = read_json(run / "environment.json") if (run / "environment.json").is_file() else {}
        backbone = {
            **{key: written[key] for key in ("name", "quantisation", "dtype")},
            "revision": environment.get("backbone_revision"),
            **environment.get("backbone_sizes", {}),
        }
        tasks = [entry["name"] for entry in opened(read_json(run / "metrics.json"))["tasks"]]
    return {"tasks": tasks, "backbone": backbone}


def _with_config(folder: Path, told: dict[str, Any]) -> dict[str, Any]:
    """Facts of a backbone, with what PEFT's config says where they say nothing; the adapter's files are there."""
    if not (folder / WEIGHTS_FILE).is_file():  # PEFT would look for a pickled file next
        raise HimalayaError(f"the adapter in {folder} has lost its file {WEIGHTS_FILE}")
    if (folder / COMPLETE).is_file() and not is_complete(folder):
        raise HimalayaError(f"the adapter in {folder} is damaged: its files are not those of {COMPLETE}")
    with damage_told(folder / CONFIG_FILE):
        config = read_json(folder / CONFIG_FILE)
        return {"name": config["base_model_name_or_path"], "revision": config.get("revision")} | told


def _facts(folder: Path) -> dict[str, Any]:
    """``backbone`` as the list of tasks says, or it and ``tasks`` as the card does; empty if neither is ours."""
    path = folder / CARD_FILE
    if (folder / TASKS_FILE).is_file() or not path.is_file():
        return learnt_facts(folder) | {"tasks": []}  # it lacks those that were learnt in another way
    with damage_told(path, "put back what was there, or delete it, and name the backbone (--backbone)"):
        facts = {"tasks": [], "backbone": {}} | _card_facts(path)
        # Name and revision are those in PEFT's config: the card calls a folder by its last part alone.
        told = {key: value for key, value in facts["backbone"].items() if key not in ("name", "revision")}
        return facts | {"backbone": told}


def learnt_facts(folder: Path) -> dict[str, Any]:
    """What ``tasks.json`` says of the adapter beside it: ``backbone``, and of each task its record under ``tasks``.

    Both are empty if nobody has written them down.

    Raises:
        HimalayaError: It is not what `himalaya learn` has written together with the adapter's two files.
    """
    if not (folder / TASKS_FILE).is_file():
        return {"backbone": {}, "tasks": {}}
    lost = "the adapter keeps its tasks, their templates and scores are lost"
    with damage_told(folder / TASKS_FILE, f"put back what was there, or delete it: {lost}"):
        facts = opened(read_json(folder / TASKS_FILE), needs_hash=True)
        if facts["format"] > TASKS_FORMAT:
            raise ValueError("it was written by a newer himalaya-adapter: update it")
        if facts["files"] != files_identity(folder / name for name in (CONFIG_FILE, WEIGHTS_FILE)):
            raise ValueError(f"it was not written with the {CONFIG_FILE} and {WEIGHTS_FILE} beside it")
    return facts


def _card_facts(card: Path) -> dict[str, Any]:
    """What the front matter of a model card says; nothing if the card is not one of ours."""
    facts = ModelCard.load(card).data.to_dict().get(CARD_FACTS)
    text = card.read_text(encoding="utf-8")
    if facts is None and not (all(sign in text for sign in OURS) or f"\n{CARD_FACTS}:" in text):
        return {}
    return opened(facts, needs_hash=True)


def _from_hub(repository: str) -> Path:
    """The adapter's three files out of the hub or its cache; never a pickled file."""
    wanted = [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=wanted))
    except (OSError, ValueError) as error:  # what all errors of the hub's client are
        raise HimalayaError(
            f"{repository} is no folder here, and no adapter of the hub could be had: {one_line(error)}"
        ) from error
    if not (folder / CONFIG_FILE).is_file():
        raise HimalayaError(f"{repository} on the hub holds no adapter: it has no {CONFIG_FILE}")
    return folder


def _check_backbone(loaded: Backbone, told: dict[str, Any], folder: Path, same_weights: bool) -> None:
    """Refuse a model of other sizes; say so, or refuse it too, if its weights may be others."""
    found = sizes_of(loaded.model.config)
    for size in SIZES:
        if size in told and found.get(size) != told[size]:
            raise HimalayaError(
                f"the adapter in {folder} is for another backbone: it was trained on {told['name']} with "
                f"{size}={told[size]}, {loaded.name} has {found.get(size)}"
            )
    if told["revision"] is not None and loaded.revision != told["revision"]:
        difference = f"{loaded.revision} now, {told['revision']} then"
        if same_weights:
            raise HimalayaError(
                f"the weights of {loaded.name} are not those that the adapter in {folder} has learnt on, and "
                f"what it knows needs those: {difference}"
            )
        logger.warning("%s is not what the adapter was trained on: %s", loaded.name, difference)
