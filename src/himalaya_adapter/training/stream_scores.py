"""Scores of a stream's tasks: before training, after each task, and at the end without labels and as released."""

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import PeftModel

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.batching import prompt_batches
from himalaya_adapter.evaluation.metrics import rows_to_measure
from himalaya_adapter.evaluation.score_cache import ScoreCache, file_hashes
from himalaya_adapter.evaluation.scoring import evaluate_task
from himalaya_adapter.experiments.run_config import EvaluationConfig
from himalaya_adapter.methods.continual import continual
from himalaya_adapter.methods.release import has_release, save_release
from himalaya_adapter.storage import read_json
from himalaya_adapter.streams import Stream, Task
from himalaya_adapter.training.protocols import SEQUENTIAL, row_of_score
from himalaya_adapter.training.run_store import BEFORE, RELEASED, UNLABELLED, RunStore

PROMPT_SHOWN = 600  # characters of a sample's prompt, its end
CACHE = ".scores"  # in the results folder, for all of its runs
# What environment.json says beside the machine, the versions and the backbone.
OF_THE_RUN = ("seed", "tasks", "data_hashes")


@dataclass
class StreamScores:
    """Scores one adapted model on the tasks of one stream; what is stored, by this run or another, is not computed.

    Of several processes the first one scores while the others wait.

    Args:
        store: The run's folder.
        stream: The tasks.
        tokenizer: The backbone's.
        model: The backbone with its adapter.
        evaluation: How a task is scored.
        max_length: The most tokens of a prompt.
        protocol: What the adapter learns when (`protocol_of`).
    """

    store: RunStore
    stream: Stream
    tokenizer: Any
    model: PeftModel
    evaluation: EvaluationConfig
    max_length: int
    protocol: str

    def __post_init__(self) -> None:
        self.method = continual(self.model)
        self.measured = rows_to_measure(self.evaluation.rows, len(self.stream.tasks))
        environment = read_json(self.store.folder / "environment.json")
        settings = {
            "batch_size": self.evaluation.eval_batch_size,
            "max_length": self.max_length,
            "backbone": self.store.config["model"]["backbone"],
            "environment": {key: value for key, value in environment.items() if key not in OF_THE_RUN},
        }
        self.cache = ScoreCache(self.store.folder.parent / CACHE, settings)

    def score_before(self) -> None:
        """Score all tasks before training."""
        for index, _ in enumerate(self.stream.tasks):
            self.score(BEFORE, index)

    def score_after(self, row: int) -> None:
        """Score the tasks after training through task ``row``: all so far, or only the one just learnt."""
        for index in range(row + 1) if row in self.measured else [row]:
            self.score(row, index)

    def score(self, row: int | str, index: int) -> None:
        """Score task ``index`` after training through task ``row``, or before all training."""
        task = self.stream.tasks[index]
        if not PartialState().is_main_process or self.store.score(row, index) is not None:
            return
        known = self.store.score(row_of_score(self.protocol, row, index), index) if isinstance(row, int) else None
        if known is None:
            identity = self.cache.identity(task, self._answers(row, task), self.evaluation.split)
            known = self.cache.read(identity)
        if known is not None:
            self.store.write_score(row, index, {**known, "reused": True})
            return
        if row != BEFORE:
            self.method.set_task(task.name)
        with self.model.disable_adapter() if row == BEFORE else nullcontext():
            score = self._evaluate(task)
        self.store.write_score(row, index, score)
        self.cache.write(identity, score)

    def matrix(self, row: int) -> list[list[float | None]]:
        """The rows of the accuracy matrix up to ``row``, ``None`` where nothing was measured."""
        found = [[self.store.score(after, task) for task in range(after + 1)] for after in range(row + 1)]
        return [[score["score"] if score else None for score in scores] for scores in found]

    def score_unlabelled(self) -> None:
        """Score all tasks again, a method that can tell tasks from prompts being told nothing but the prompts."""
        if not self.method.recognises_tasks or self.protocol != SEQUENTIAL:
            return
        names = [task.name for task in self.stream.tasks]
        for index, task in enumerate(self.stream.tasks):
            if self.store.score(UNLABELLED, index) is None:
                started = time.perf_counter()
                found = [
                    name
                    for batch in prompt_batches(
                        self.tokenizer, task.split(self.evaluation.split), self.max_length, self.model.device
                    )
                    for name, _ in self.method.infer_task(batch.input_ids, names, batch.attention_mask)
                ]
                self.method.set_task(None)
                recognised = sum(name == task.name for name in found) / len(found)
                seconds = time.perf_counter() - started
                score = self._evaluate(task)
                extra = {"seconds": score["seconds"] + seconds, "recognised": recognised}
                self.store.write_score(UNLABELLED, index, {**score, **extra})

    def release(self) -> dict[str, int] | None:
        """Write the release file of a method that has one, and score all tasks with it.

        Returns:
            The file's bytes by part.
        """
        if not has_release(self.model.peft_config["default"]) or self.protocol != SEQUENTIAL:
            return None
        folder = self.store.folder / "release"
        parts = save_release(
            self.model,
            folder,
            revision=read_json(self.store.folder / "environment.json")["backbone_revision"],
        )
        self.model.load_adapter(str(folder), adapter_name=RELEASED)
        self.model.set_adapter(RELEASED)
        for index, _ in enumerate(self.stream.tasks):
            self.score(RELEASED, index)
        self.model.set_adapter("default")
        self.model.delete_adapter(RELEASED)
        return parts

    def item_scores(self) -> list[list[list[float] | None]]:
        """The scores of the test items in the stored part of the matrix, a row after each task."""
        rows = range(len(self.stream.tasks))
        stored = [[self.store.score(row, index) for index in range(row + 1)] for row in rows]
        return [[score["item_scores"] if score else None for score in row] for row in stored]

    def samples(self) -> list[dict[str, Any]]:
        """The first items of each task with their answers before training, right after it, and at the end."""
        last, found = len(self.stream.tasks) - 1, []
        for index, task in enumerate(self.stream.tasks):
            scores = (self.store.score(row, index) or {} for row in (BEFORE, index, last))
            answers = zip(*(score.get("answers", ()) for score in scores), strict=False)  # old scores have none
            items = [
                {"prompt": item.prompt[-PROMPT_SHOWN:], "target": item.target, "answers": list(of_item)}
                for item, of_item in zip(task.split(self.evaluation.split), answers, strict=False)
            ]
            found.append({"task": task.name, "items": items})
        return found

    def _answers(self, row: int | str, task: Task) -> dict[str, str] | None:
        """Hashes of what answers a task in a row: of the task alone, where no other task can change its answers."""
        if row == BEFORE:
            return None
        folder = self._adapter(row)
        task_hash = self.method.task_hash(task.name)
        return file_hashes(folder) if task_hash is None else {"task": task_hash}

    def _adapter(self, row: int | str) -> Path:
        """Folder of the adapter that a row is scored with.

        Raises:
            HimalayaError: It is no longer kept: a score of an earlier row is missing.
        """
        if row == RELEASED:
            return self.store.folder / "release"
        folder = self.store.adapter_path(int(row))
        if not folder.is_dir():
            raise HimalayaError(
                f"a score of {self.store.folder} after task {int(row) + 1} is missing, and the adapter of that time "
                "is no longer kept: start the run anew with overwrite=true"
            )
        return folder

    def _evaluate(self, task: Task) -> dict[str, Any]:
        return asdict(
            evaluate_task(
                self.model,
                self.tokenizer,
                task,
                split=self.evaluation.split,
                batch_size=self.evaluation.eval_batch_size,
                max_length=self.max_length,
            )
        )
