"""Learn one task from a user's file, with an adapter that is new or has learnt others before."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rapidfuzz.distance import OSA
from transformers import TrainerState

from himalaya_adapter.backbones import BACKBONES, load_backbone
from himalaya_adapter.backbones.shape import hidden_width, sizes_of
from himalaya_adapter.deploy.adapter_folder import LoadedAdapter, load_adapter
from himalaya_adapter.deploy.answering import AUTO
from himalaya_adapter.errors import HimalayaError, out_of_memory_told
from himalaya_adapter.evaluation.batching import context_of
from himalaya_adapter.experiments.run_config import TrainingConfig
from himalaya_adapter.experiments.schema import parse
from himalaya_adapter.identity import config_identity
from himalaya_adapter.methods.construction import adapt
from himalaya_adapter.methods.continual import continual
from himalaya_adapter.methods.himalaya.config import Placement
from himalaya_adapter.names import known_task, normalised
from himalaya_adapter.streams import Task
from himalaya_adapter.training.batches import EncodedItems
from himalaya_adapter.training.environment import peak_memory_bytes
from himalaya_adapter.training.progress import stage
from himalaya_adapter.training.task_training import (
    StreamCallback,
    seconds_of_steps,
    train_task,
    training_arguments,
)

from .adapter_store import AdapterStore, room, sized_config
from .asking import score
from .data import OwnData, read_data
from .held_out import MOST_SCORED, HeldOut, hold_out
from .rows import read_rows

logger = logging.getLogger(__name__)
DEFAULT_BACKBONE, DEFAULT_BUDGET_MB = "smollm2-135m", 2.5
CHECKPOINTS = "checkpoints"
# A task of few items is seen several times, until it has been trained in about so many steps.
USUAL_STEPS, MOST_EPOCHS = 100, 10


@dataclass(frozen=True)
class LearnOptions:
    """What can be said about learning a task; the defaults suit a first try.

    Args:
        backbone: Name or folder of the frozen model, for a new adapter; later only where it lies elsewhere now.
        budget_mb: Largest file of a new adapter, which decides how many tasks it has room for.
        placement: Where the update of a new adapter acts: after the decoder layers, or in the weights, as a LoRA.
        atoms_per_task: Of a new adapter: fewer leave room for more tasks, which learn less.
        new: Whether the name is meant, though another task has almost the same.
        templates: Of prompt and answer, where the columns do not speak for themselves.
        split: Which split of a data set.
        metric: Name of the metric; by default as the answers look.
        skip_bad_rows: Leave out rows that give no item.
        epochs: Passes over the items; by default as many as make about a hundred steps.
        steps: Most optimiser steps.
        batch_size: Items of a step.
        learning_rate: Peak learning rate.
        seed: Of what is held out of a new task, and of the order of training.
        save_steps: Steps between two checkpoints, from which a killed process goes on.
        checks: Files by the name of an earlier task, which is scored on them before and after.
        keep_check: Keep the held-out items beside the adapter, to score the task on whenever another is learnt.
    """

    backbone: str | None = None
    budget_mb: float | None = None
    placement: Placement | None = None
    atoms_per_task: int | None = None
    new: bool = False
    templates: tuple[str, str] | None = None
    split: str = "train"
    metric: str | None = None
    skip_bad_rows: bool = False
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 4
    learning_rate: float = 3e-3
    seed: int = 0
    save_steps: int = 25
    checks: Mapping[str, str] = field(default_factory=dict)
    keep_check: bool = False


@dataclass(frozen=True)
class Change:
    """A task's score before something was learnt, and after."""

    task: str
    metric: str
    items: int
    before: float
    after: float


@dataclass(frozen=True)
class Learnt:
    """What learning a task has come to.

    Args:
        task: How the task itself has changed; before, a new one was the frozen model.
        earlier: How earlier tasks have changed, as far as there were items to score them on.
        record: What ``tasks.json`` says of the task.
        room: How many more tasks of this size fit.
        bytes: Size of the adapter's file.
    """

    task: Change
    earlier: tuple[Change, ...]
    record: Mapping[str, Any]
    room: int
    bytes: int


def learn(
    folder: Path,
    data: str,
    name: str,
    options: LearnOptions | None = None,
    tell: Callable[[Learnt], None] = lambda _: None,
) -> Learnt:
    """Learn a task, new or known, and keep it in the adapter's folder, which is made if it is not there.

    A process that was killed goes on when it is called again, and ends with the same adapter bit for bit. Until the
    task has been learnt and scored, the folder stays as it is.

    Args:
        folder: The adapter's.
        data: The task's file, folder or data set: see `read_rows`.
        name: The task's name.
        options: See there.
        tell: Called with the result; a process killed before it returns goes on, too.

    Raises:
        HimalayaError: Anything a user can mend, in one line. The folder is as before.
    """
    options = options or LearnOptions()
    name, store = normalised(name), AdapterStore(folder)
    rows = read_rows(data, options.split)
    with store.locked():
        learner = Learner(store, options, _opened(store, options) if store.exists else _begun(store, options))
        with out_of_memory_told("try --batch-size 1, shorter rows, or a smaller backbone"):
            learnt = learner.learn(rows, data, name)
        tell(learnt)
        store.clear()
    return learnt


class Learner:
    """A model with an adapter, while it learns tasks.

    Args:
        store: Where the adapter lies, and where what is not finished goes.
        options: See there.
        adapter: The adapter on its backbone, of any method.
    """

    def __init__(self, store: AdapterStore, options: LearnOptions, adapter: LoadedAdapter) -> None:
        self.store, self.options, self.adapter = store, options, adapter
        self.model, self.tokenizer = adapter.model, adapter.tokenizer
        self.method = continual(self.model)
        self.context = context_of(self.model)

    def learn(self, rows: list[Any], data: str, name: str) -> Learnt:
        """See the function `learn`."""
        options, known, facts = self.options, name in self.method.tasks, self.store.facts
        # Nobody has written the backbone down beside an adapter that is new, or that PEFT has saved.
        facts["backbone"] = facts["backbone"] or _told(self.adapter)
        if (half := self.model.open_task) is not None:
            raise HimalayaError(
                f"task '{half}' in {self.store.folder} is half learnt: himalaya forget removes it; in Python "
                "model.end_task() keeps what it has learnt"
            )
        _check_name(name, self.method.tasks, options.new)
        own = self._read(rows, data, name, templates=options.templates, metric=options.metric)
        before = self.store.record(name) if known else {}
        held = HeldOut(**before.get("held_out_by", {"seed": options.seed}))
        task, held = hold_out(own, data, name, held)
        checks = self._checks(name)
        if not known and room(self.model.base_model.himalaya_shared["default"]) == 0:
            raise HimalayaError(
                f"no room for another task in {self.store.folder}: himalaya forget removes one, or begin another "
                "adapter with a larger --budget-mb"
            )
        training = self.training(len(task.train))
        identity = {"task": name, "data": task.hashes, "training": asdict(training)}
        identity |= {"backbone": facts["backbone"], "config": config_identity(self.model.active_peft_config)}
        identity |= {"checks": {one.name: one.hashes for one in checks}}
        if identity.items() <= self.store.finished.items():
            return self._learnt(name)
        self.store.begin(identity)
        asked = [task, *checks]
        earlier = [score(self.model, self.tokenizer, one, frozen=one is task and not known) for one in asked]
        state = self.train(task, training)
        scores = [score(self.model, self.tokenizer, one) for one in asked]
        after = scores[0]
        frozen = before.get("score_frozen", before.get("score_before")) if known else earlier[0].score
        changes = [
            Change(one.name, new.metric, new.n, old.score, new.score)
            for one, old, new in zip(asked, earlier, scores, strict=True)
        ]
        facts["tasks"] = {one: self.store.record(one) for one in self.method.tasks}  # all that can be asked for
        facts["tasks"][name] = {
            "items": len(task.train) + before.get("items", 0),
            "held_out": after.n,
            "held_out_by": asdict(held),
            "left_out": dict(task.skipped),
            "metric": after.metric,
            "score_frozen": frozen if not known or before.get("metric") == after.metric else None,
            "score_before": earlier[0].score,
            "score": after.score,
            "low": after.low,
            "high": after.high,
            "steps": state.global_step,
            "seconds": round(seconds_of_steps(state), 1),
            "peak_memory_bytes": peak_memory_bytes(),
            "form": asdict(replace(own.form, lines=task.answers_are_lines)),
            "changes": [asdict(change) for change in changes],
        }
        kept = {name: task.test} if options.keep_check else {}
        self.store.replace(lambda folder: self.model.save_pretrained(folder), kept)
        return self._learnt(name)

    def _learnt(self, name: str) -> Learnt:
        record = self.store.record(name)
        task, *earlier = (Change(**change) for change in record["changes"])
        return Learnt(task, tuple(earlier), record, room(self.store.adapter), self.store.bytes)

    # Items -----------------------------------------------------------------------------------------------------

    def _read(self, rows: list[Any], data: str, name: str, **said: Any) -> OwnData:
        known, skip = self.store.form(name), self.options.skip_bad_rows
        return read_data(rows, data, self.tokenizer, self.context, known=known, skip_bad_rows=skip, **said)

    def _checks(self, learning: str) -> list[Task]:
        """The earlier tasks that are scored before and after, with the items to score them on."""
        checks = {}
        for name in self.method.tasks:
            if name == learning:
                continue
            kept, form = self.store.kept(name), self.store.form(name)
            if kept is not None and form is not None:
                checks[name] = OwnData(form, tuple(kept)).scored(name, kept)
        for said, file in self.options.checks.items():
            name = known_task(said, self.method.tasks, "task in --check")
            if name == learning:
                logger.warning("--check %s=%s is left out: what is learnt is scored on its held-out items", said, file)
                continue
            own = self._read(read_rows(file), file, name, new_labels=False)
            checks[name] = own.scored(name, own.items[:MOST_SCORED])
        return list(checks.values())

    # Training --------------------------------------------------------------------------------------------------

    def training(self, items: int) -> TrainingConfig:
        """How so many items are trained on."""
        options = self.options
        a_pass = math.ceil(items / options.batch_size)
        usual = max(1, min(MOST_EPOCHS, round(USUAL_STEPS / a_pass)))
        said = {
            "task_epochs": options.epochs or (math.ceil(options.steps / a_pass) if options.steps else usual),
            "max_updates_per_task": options.steps,
            "batch_size": options.batch_size,
            "learning_rate": options.learning_rate,
            "save_steps": options.save_steps,
            "seed": options.seed,
        }
        return parse(TrainingConfig, said, "himalaya learn")

    def train(self, task: Task, training: TrainingConfig) -> TrainerState:
        """Learn a task from its items, from its start to its end."""
        examples = EncodedItems(self.tokenizer, [task], self.context)  # rows that are too long are none of its items
        arguments = training_arguments(training, task.name, 0, len(examples), self.store.unfinished / CHECKPOINTS)
        with stage(f"learning {task.name}") as advance:
            callback = _LearnCallback(task.name, lambda state, _: advance(state.global_step, state.max_steps))
            trained = train_task(self.model, self.tokenizer, task, examples, arguments, callback)
        self.model.eval()
        return trained.state


class _LearnCallback(StreamCallback):
    """As in a run, with what can be said on this command's line."""

    remedy = "try a lower --learning-rate"


def _opened(store: AdapterStore, options: LearnOptions) -> LoadedAdapter:
    """The adapter of a folder on its backbone.

    Raises:
        HimalayaError: It cannot be loaded, or cannot learn more.
    """
    made_with = options.budget_mb, options.placement, options.atoms_per_task
    if any(one is not None for one in made_with) and not store.finished:
        raise HimalayaError(f"{store.folder} is there already: room and placement were decided when it was made")
    _ = store.adapter  # refuses another method's, before a backbone is loaded for nothing
    return load_adapter(store.folder, backbone=options.backbone, trainable=True)


def _begun(store: AdapterStore, options: LearnOptions) -> LoadedAdapter:
    """A new adapter on its backbone.

    Raises:
        HimalayaError: It has no room for a task.
    """
    backbone = load_backbone(_absolute(options.backbone or DEFAULT_BACKBONE))
    budget = DEFAULT_BUDGET_MB if options.budget_mb is None else options.budget_mb
    given = {"placement": options.placement, "atoms_per_task": options.atoms_per_task, "seed": options.seed}
    given = {key: value for key, value in given.items() if value is not None}
    config = sized_config(budget, hidden_width(backbone.model), **given)
    model = adapt(backbone.model, config, options.seed)
    return LoadedAdapter(model, backbone.tokenizer, (), backbone.name, store.folder, backbone.revision)


def _absolute(backbone: str) -> str:
    """A backbone's folder by a name that leads there from everywhere; any other name as it is."""
    is_folder = backbone not in BACKBONES and Path(backbone).is_dir()
    return str(Path(backbone).resolve()) if is_folder else backbone


def _told(adapter: LoadedAdapter) -> dict[str, Any]:
    """What ``tasks.json`` says of a backbone."""
    return {"name": _absolute(adapter.backbone), "revision": adapter.revision, **sizes_of(adapter.model.config)}


def _check_name(name: str, known: Sequence[str], new: bool) -> None:
    """Refuse a name that no command can ask for, or a new one that is one slip of the finger away from a known one.

    Raises:
        HimalayaError: It is, and nobody has said that it is meant.
    """
    if name == AUTO:
        raise HimalayaError(f"--task {AUTO}: other commands take it for 'as the prompt looks'; choose another name")
    near = [one for one in known if one != name and _one_slip_apart(one, name)]
    if name not in known and near and not new:
        raise HimalayaError(f"there is a task '{near[0]}': did you mean it? --new learns '{name}' as another task")


def _one_slip_apart(one: str, other: str) -> bool:
    """Whether one letter, its case or its place makes the whole difference, or a letter too many."""
    one, other = one.casefold(), other.casefold()
    first = next((pair for pair in zip(one, other, strict=False) if pair[0] != pair[1]), ("", ""))
    if all(map(str.isdigit, first)):  # a number is no slip: part1, part2
        return False
    return OSA.distance(one, other) <= 1
