"""Scores of a stream's tasks: before training, after each task, and at the end without labels and as released."""

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
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
from himalaya_adapter.training.run_store import BEFORE, EARLIER, RELEASED, UNLABELLED, RunStore

CACHE = ".scores"  # in the results folder, for all of its runs
# What environment.json says beside the machine, the versions and the backbone.
OF_THE_RUN = ("seed", "tasks", "data_hashes", EARLIER)


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

    def score_all(self, row: str) -> None:
        """Score all tasks: before training, or as released."""
        for index in range(len(self.stream.tasks)):
            self.score(row, index)

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

    def score_unlabelled(self) -> None:
        """Score all tasks again, a method that can tell tasks from prompts being told nothing but the prompts."""
        if not self.method.recognises_tasks or self.protocol != SEQUENTIAL:
            return
        names = [task.name for task in self.stream.tasks]
        for index, task in enumerate(self.stream.tasks):
            if self.store.score(UNLABELLED, index) is None:
                started, items = time.perf_counter(), task.split(self.evaluation.split)
                found = [
                    name
                    for batch in prompt_batches(self.tokenizer, items, self.max_length, self.model.device)
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
        revision = read_json(self.store.folder / "environment.json")["backbone_revision"]
        parts = save_release(self.model, folder, revision=revision)
        self.model.load_adapter(str(folder), adapter_name=RELEASED)
        self.model.set_adapter(RELEASED)
        self.score_all(RELEASED)
        self.model.set_adapter("default")
        self.model.delete_adapter(RELEASED)
        return parts

    def _answers(self, row: int | str, task: Task) -> dict[str, str] | None:
        """Hashes of what answers a task in a row: of the task alone, where no other task can change its answers.

        Raises:
            HimalayaError: The adapter is no longer kept: a score of an earlier row is missing.
        """
        if row == BEFORE:
            return None
        folder = self.store.folder / "release" if row == RELEASED else self.store.adapter_path(int(row))
        if not folder.is_dir():
            raise HimalayaError(
                f"a score of {self.store.folder} after task {int(row) + 1} is missing, and the adapter of that time "
                "is no longer kept: start the run anew with overwrite=true"
            )
        task_hash = self.method.task_hash(task.name)
        return file_hashes(folder) if task_hash is None else {"task": task_hash}

    def _evaluate(self, task: Task) -> dict[str, Any]:
        split, batch_size, max_length = self.evaluation.split, self.evaluation.eval_batch_size, self.max_length
        return asdict(
            evaluate_task(self.model, self.tokenizer, task, split=split, batch_size=batch_size, max_length=max_length)
        )
