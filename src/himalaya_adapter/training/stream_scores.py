"""Scores of a stream's tasks: before training, after each task, and at the end without labels and as released."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import PeftModel

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.batching import Batch, batches, padding_token
from himalaya_adapter.evaluation.metrics import rows_to_measure
from himalaya_adapter.evaluation.score_cache import ScoreCache, file_hashes
from himalaya_adapter.evaluation.scoring import evaluate_task
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.methods.continual import continual
from himalaya_adapter.methods.release import has_release, save_release
from himalaya_adapter.storage import read_json
from himalaya_adapter.streams import Stream, Task
from himalaya_adapter.streams.encoding import encode_prompt
from himalaya_adapter.training.protocols import SEQUENTIAL, protocol_of, row_of_score
from himalaya_adapter.training.run_store import BEFORE, RELEASED, UNLABELLED, RunStore

PROMPTS_AT_ONCE = 64
PROMPT_SHOWN = 600  # characters of a sample's prompt, its end
CACHE = ".scores"  # in the results folder, for all of its runs
# What environment.json says beside the machine, the versions and the backbone.
OF_THE_RUN = ("seed", "tasks", "data_hashes")


class StreamScores:
    """Scores one adapted model on the tasks of one stream; what is stored, by this run or another, is not computed.

    Of several processes the first one scores while the others wait.

    Args:
        config: The run.
        store: Its folder.
        stream: The tasks.
        tokenizer: The backbone's.
        model: The backbone with its adapter.
    """

    def __init__(self, config: RunConfig, store: RunStore, stream: Stream, tokenizer: Any, model: PeftModel) -> None:
        self.config = config
        self.store = store
        self.stream = stream
        self.tokenizer = tokenizer
        self.model = model
        self.method = continual(model)
        self.protocol = protocol_of(config)
        self.measured = rows_to_measure(config.evaluation.rows, len(stream.tasks))
        settings = {
            "batch_size": config.evaluation.eval_batch_size,
            "max_length": config.dataset.max_seq_length,
            "backbone": config.model.backbone.name,
            "quantisation": config.model.backbone.quantisation,
            "environment": {
                key: value
                for key, value in read_json(store.folder / "environment.json").items()
                if key not in OF_THE_RUN
            },
        }
        self.cache = ScoreCache(store.folder.parent / CACHE, settings)

    def columns(self, row: int) -> list[int]:
        """The tasks to score after training through task ``row``: all so far, or only the one just learnt."""
        return list(range(row + 1)) if row in self.measured else [row]

    def score(self, row: int | str, index: int) -> None:
        """Score task ``index`` after training through task ``row``, or before all training."""
        task = self.stream.tasks[index]
        if not PartialState().is_main_process or self.store.score(row, index) is not None:
            return
        known = self.store.score(row_of_score(self.protocol, row, index), index) if isinstance(row, int) else None
        if known is None:
            identity = self.cache.identity(task, self._answers(row, task), self.config.evaluation.split)
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
                    for batch in self.prompts(task, self.config.evaluation.split)
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
                for item, of_item in zip(task.split(self.config.evaluation.split), answers, strict=False)
            ]
            found.append({"task": task.name, "items": items})
        return found

    def prompts(self, task: Task, split: str) -> Iterator[Batch]:
        """The prompts of one of a task's splits, in batches."""
        length = self.config.dataset.max_seq_length
        prompts = [encode_prompt(self.tokenizer, item.prompt, length) for item in task.split(split)]
        return batches(prompts, PROMPTS_AT_ONCE, padding_token(self.tokenizer), self.model.device)

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
                split=self.config.evaluation.split,
                batch_size=self.config.evaluation.eval_batch_size,
                max_length=self.config.dataset.max_seq_length,
            )
        )
