"""Learns a stream task by task, scores after each, and can be killed and started again at any moment."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerState, TrainingArguments

from himalaya_adapter.backbones import Backbone, load_backbone
from himalaya_adapter.budget import check_budget
from himalaya_adapter.errors import HimalayaError, out_of_memory_told
from himalaya_adapter.evaluation.drift import base_drift
from himalaya_adapter.experiments.method_options import method_of
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.validation import check_run
from himalaya_adapter.identity import is_complete
from himalaya_adapter.methods.construction import adapt, run_method
from himalaya_adapter.methods.continual import continual
from himalaya_adapter.methods.packed_adapter import PackedAdapter
from himalaya_adapter.streams import Limits, Stream, Task, load_stream
from himalaya_adapter.streams.encoding import count_truncated
from himalaya_adapter.streams.plain_text import held_out_text
from himalaya_adapter.training import preconditions, protocols
from himalaya_adapter.training.batches import AnswerCollator, EncodedItems, answer_log_likelihoods, fitting
from himalaya_adapter.training.environment import describe_environment, peak_memory_bytes
from himalaya_adapter.training.online_ewc import FISHER_ITEMS, OnlineEWC
from himalaya_adapter.training.progress import StreamProgress
from himalaya_adapter.training.run_store import ADAPTER_FILE, BEFORE, RunStore, stored_bytes, values
from himalaya_adapter.training.stream_scores import StreamScores
from himalaya_adapter.training.summary import write_results
from himalaya_adapter.training.task_training import StreamCallback, train_task, training_arguments
from himalaya_adapter.training.trackers import Trackers

logger = logging.getLogger(__name__)
DRIFT_TOKENS = 128
# The other processes wait while the first one scores; one that has died is torchrun's to notice.
PATIENCE = timedelta(days=7)
LESS_MEMORY = (
    "lower training.batch_size and raise training.grad_accum_steps, set training.gradient_checkpointing=true, or "
    "lower evaluation.eval_batch_size, under a new run_id"
)
AfterTask = Callable[[list[list[float | None]]], None]


def run_stream(
    config: RunConfig, results_dir: Path, *, overwrite: bool = False, after_task: AfterTask | None = None
) -> Path:
    """Run one method through one stream; returns the run's folder.

    Finished parts are read back, never computed again: the same call continues an interrupted run and ends with the
    same matrix, bit for bit; a finished run is left as it is.

    Args:
        config: The run.
        results_dir: Where run folders lie.
        overwrite: Delete an existing folder of this run first.
        after_task: Called after each task, also those that an earlier process has learnt, with the rows of the
            accuracy matrix so far. What it raises ends the process's work on the run, which can be continued.

    Raises:
        HimalayaError: Anything a user can mend, in one line.
    """
    check_run(config)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # of a run before this one in the same process
    processes = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    if not processes.is_main_process:
        logging.getLogger("himalaya_adapter").setLevel(logging.ERROR)  # the first process says it all
    folder = results_dir / config.run_id
    store = RunStore(folder, asdict(config), overwrite=overwrite)
    if store.finished:
        logger.warning("%s is finished; nothing to do (overwrite=true starts it anew)", folder)
        return folder
    adapter = run_method(config)
    preconditions.check_tracker(config.training.report_to)
    preconditions.check_latency(config, adapter)
    check_budget(config, adapter)
    scored = config.dataset.max_test_samples_per_task
    limits = Limits(
        train=config.dataset.max_samples_per_task,
        validation=scored if config.evaluation.split == "validation" else None,
        test=scored,
    )
    with processes.local_main_process_first():  # it fills the cache
        stream = load_stream(config.dataset.name, limits=limits)
        plain_text = held_out_text()  # for the drift: better missed now than after the last task
    if config.dataset.order == "reversed":
        stream = Stream(stream.name, stream.tasks[::-1])
    preconditions.check_stream(config.dataset, stream)
    preconditions.announce(config.hardware, searches=bool(config.optuna.search_space))
    wanted = config.model.backbone
    with processes.local_main_process_first():
        quantisation = "4-bit" if wanted.quantisation else None
        backbone = load_backbone(wanted.name, quantisation=quantisation, dtype=wanted.dtype)
    longest = config.dataset.max_seq_length
    preconditions.check_backbone(longest, backbone)
    stream = Stream(stream.name, tuple(fitting(backbone.tokenizer, task, longest) for task in stream.tasks))
    bare = preconditions.frozen_logits(backbone.model)
    model = adapt(backbone.model, adapter, config.training.seed)
    preconditions.check_start(model, bare)
    model.to(processes.device)  # scores are measured before the Trainer would move it
    protocols.check_protocol(config, continual(model))
    # From here on the folder is written to: whatever could be wrong with the config has been found by now.
    with store.locked() if processes.is_main_process else nullcontext():
        if processes.is_main_process:
            store.begin(describe_environment(config.training.seed, stream, backbone))
        processes.wait_for_everyone()
        with out_of_memory_told(LESS_MEMORY):
            StreamRunner(config, store, stream, plain_text, backbone, model).run(after_task)
        processes.wait_for_everyone()
    return folder


@dataclass
class StreamRunner:
    """Drives one adapted model through one stream.

    Started by ``torchrun``, all processes learn together; the first one scores and writes while the others wait.

    Args:
        config: The run.
        store: Its folder.
        stream: The tasks.
        plain_text: What no task is about; the base model's drift is measured on it.
        backbone: The frozen model and its tokenizer.
        model: The backbone with its adapter.
    """

    config: RunConfig
    store: RunStore
    stream: Stream
    plain_text: Sequence[str]
    backbone: Backbone
    model: PeftModel

    def __post_init__(self) -> None:
        config, tasks = self.config, self.stream.tasks
        self.max_length = config.dataset.max_seq_length
        self.tokenizer = self.backbone.tokenizer
        self.method = continual(self.model)
        self.processes = PartialState()
        self.protocol = protocols.protocol_of(config)
        scoring = config.evaluation, self.max_length, self.protocol
        self.scores = StreamScores(self.store, self.stream, self.tokenizer, self.model, *scoring)
        self.fresh: dict[str, Tensor] = {}  # what every task of the protocol `independent` starts from
        if self.protocol == protocols.INDEPENDENT:
            self.fresh = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(self.model).items()}
        strength = config.model.adapter.ewc_lambda
        self.ewc = OnlineEWC(strength) if strength is not None else None
        bits = config.model.adapter.bits
        self.packed = PackedAdapter(self.model, bits) if bits is not None else None
        shown = self.processes.is_main_process
        report_to = config.training.report_to if shown else "none"
        self.trackers = Trackers(report_to, self.store.folder, self._arguments(0, 1), self.model)
        self.learnt = [protocols.tasks_learnt_at(self.protocol, index, tasks) for index in range(len(tasks))]
        items = [sum(len(task.train) for task in learnt) for learnt in self.learnt]
        self.progress = StreamProgress([task.name for task in tasks], items, shown=shown)

    def run(self, after_task: AfterTask | None = None) -> None:
        """Learn what is not yet learned, score what is not yet scored, write the results."""
        learned = len(self.store.learned())
        if learned:
            self._load_adapter(self.store.adapter_path(learned - 1))
        with self.progress.bar:
            self.scores.score_all(BEFORE)
            for index, task in enumerate(self.stream.tasks):
                if index >= learned:
                    self._learn(index, task)
                self.scores.score_after(index)
                self._tell(index, after_task)
        self.trackers.end()
        if self.processes.is_main_process:
            self._finish()

    def _tell(self, index: int, after_task: AfterTask | None) -> None:
        """Say what is known after a task, also one that an earlier process has learnt: trackers may have missed it."""
        matrix = values(self.store.matrix(index + 1), "score")
        if self.processes.is_main_process:
            self.progress.scored(index, matrix[-1])
            self.trackers.log_scores(self.progress.tasks, matrix, self.store.learned()[index]["stored_bytes"])
        if after_task is not None:
            after_task(matrix)

    # Learning --------------------------------------------------------------------------------------------------

    def _arguments(self, index: int, items: int) -> TrainingArguments:
        checkpoints = self.store.task_checkpoints(index)
        return training_arguments(self.config.training, self.config.run_id, index, items, checkpoints)

    def _learn(self, index: int, task: Task) -> None:
        self.progress.begin(index)
        if not self.learnt[index]:
            self._record(index, {"steps": 0, "train_seconds": 0.0})
            return
        if self.protocol == protocols.INDEPENDENT:
            set_peft_model_state_dict(self.model, self.fresh)
        examples = EncodedItems(self.tokenizer, self.learnt[index], self.max_length)
        before = sum(record["steps"] for record in self.store.learned())

        def told(state: TrainerState, logs: Mapping[str, float]) -> None:
            self.progress.step(index, state.global_step, state.max_steps, logs["loss"])
            self.trackers.log(logs, before + state.global_step)

        arguments, callback = self._arguments(index, len(examples)), StreamCallback(task.name, told)
        trained = train_task(self.model, self.tokenizer, task, examples, arguments, callback, self.ewc)
        if self.packed:
            self.packed.round(self.model)
        record = trained.record()
        if self.ewc:
            started, collator = time.perf_counter(), AnswerCollator(self.tokenizer.pad_token_id)
            of_items = answer_log_likelihoods(self.model, collator, examples.first(FISHER_ITEMS))
            self.ewc.consolidate(self.model, of_items)
            record["train_seconds"] += time.perf_counter() - started
        of_method = {
            **self.method.norm_certificate(),
            **self.method.task_statistics(),
            "stored_bytes_by_part": self.method.stored_bytes(),
            "events": [{"index": index, "task": task.name, **event} for event in trained.events],
        }
        self._record(index, record | of_method)

    def _truncated(self, task: Task) -> dict[str, int]:
        """How many prompts of a task lose their beginning, for it to be known how much of the task is seen."""
        counts = {
            split: count_truncated(self.tokenizer, task.split(split), self.max_length, with_targets=split == "train")
            for split in ("train", self.config.evaluation.split)
        }
        if any(counts.values()):
            found = ", ".join(f"{count} of {len(task.split(split))} in {split}" for split, count in counts.items())
            logger.warning(
                "task %s: prompts of more than dataset.max_seq_length=%d tokens lose their beginning: %s",
                *(task.name, self.max_length, found),
            )
        return counts

    def _record(self, index: int, record: dict[str, Any]) -> None:
        """Make a task final: save the adapter and what is known about its training."""
        if not self.processes.is_main_process:
            return
        task = self.stream.tasks[index]
        self.model.save_pretrained(str(self.store.unfinished_adapter))
        if self.ewc:
            self.ewc.save(self.store.unfinished_adapter, self.model)
        if self.packed:
            self.packed.save(self.store.unfinished_adapter)
        head = {"event": "task_end", "index": index, "task": task.name, "truncated_prompts": self._truncated(task)}
        adapters = protocols.adapters_stored(self.protocol, index)
        stored = stored_bytes(self.store.unfinished_adapter, record.get("stored_bytes_by_part"), adapters)
        self.store.write_learned(index, head | record | stored)

    def _load_adapter(self, folder: Path) -> None:
        if not is_complete(folder):
            raise HimalayaError(
                f"{folder} is damaged or gone, and no earlier adapter is kept: start the run anew with overwrite=true"
            )
        set_peft_model_state_dict(self.model, load_file(folder / ADAPTER_FILE))
        if self.ewc:
            self.ewc.load(folder, self.model)
        if self.packed:
            self.packed.load(folder)

    # Results ---------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        last = self.store.adapter_path(len(self.stream.tasks) - 1)
        shutil.rmtree(self.store.folder / "adapter", ignore_errors=True)
        shutil.copytree(last, self.store.folder / "adapter")
        self.scores.score_unlabelled()
        released = self.scores.release()
        if self.protocol != protocols.FROZEN:
            self.method.set_task(self.stream.tasks[-1].name)
        config = self.config
        batch_size = config.evaluation.eval_batch_size
        drift = base_drift(self.model, self.tokenizer, self.plain_text, batch_size=batch_size, max_length=DRIFT_TOKENS)
        facts = {
            "run_id": config.run_id,
            "method": method_of(config).lower(),
            "method_name": config.method_name,
            "backbone": config.model.backbone.name,
            "stream": self.stream.name,
            "split": config.evaluation.split,
            "seed": config.training.seed,
            "learning_rate": config.training.learning_rate,
            "protocol": config.training.protocol,
            "ewc_lambda": config.model.adapter.ewc_lambda,
        }
        trainable, _ = self.model.get_nb_trainable_parameters()
        measured = {
            "base_drift": drift,
            "trainable_parameters": 0 if self.protocol == protocols.FROZEN else trainable,
            "peak_memory_bytes": peak_memory_bytes(),
            "released_bytes": sum(released.values()) if released else None,
        }
        write_results(self.store, self.stream, facts, measured)
