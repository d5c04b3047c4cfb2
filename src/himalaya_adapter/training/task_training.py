"""Trains an adapted model on one task with transformers' Trainer, from the task's last checkpoint on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import PeftModel
from transformers import PrinterCallback, TrainerState, TrainingArguments

from himalaya_adapter.evaluation.batching import prompt_batches
from himalaya_adapter.methods.continual import continual
from himalaya_adapter.streams import Task
from himalaya_adapter.training.arguments import CHECKPOINTING
from himalaya_adapter.training.batches import AnswerCollator, AnswerTrainer
from himalaya_adapter.training.callback import StreamCallback
from himalaya_adapter.training.encoded_items import EncodedItems
from himalaya_adapter.training.online_ewc import OnlineEWC
from himalaya_adapter.training.run_store import last_checkpoint
from himalaya_adapter.training.task_callback import noted_events

CALIBRATION_ITEMS = 16


@dataclass(frozen=True)
class TrainedTask:
    """What training on a task has come to.

    Args:
        state: The Trainer's, with all that it has logged.
        events: What happened to the adapter, each with the number of its step: 0 before the first.
        resumed: Whether an earlier process had left a checkpoint.
    """

    state: TrainerState
    events: list[dict[str, Any]]
    resumed: bool


def train_task(
    model: PeftModel,
    tokenizer: Any,
    task: Task,
    examples: EncodedItems,
    arguments: TrainingArguments,
    callback: StreamCallback,
    ewc: OnlineEWC | None = None,
) -> TrainedTask:
    """Learn a task from its start to its end; what an earlier process has done of it is not done again.

    Args:
        model: The adapted model. It is left in the mode of training.
        tokenizer: The backbone's.
        task: Its name and its prompts, by which a method tells tasks apart.
        examples: What is trained on.
        arguments: The Trainer's; checkpoints of the task are looked for in its ``output_dir``.
        callback: Of the steps.
        ewc: What keeps earlier tasks, for a method that does not itself.

    Raises:
        HimalayaError: No room for the task, or too many steps whose gradient is not finite.
    """
    method, collator = continual(model), AnswerCollator(tokenizer.pad_token_id)
    with PartialState().main_process_first():  # it deletes what is damaged
        checkpoint = last_checkpoint(Path(str(arguments.output_dir)))
    first = collator(examples.first(CALIBRATION_ITEMS))
    inputs: dict[str, Any] = {key: value.to(model.device) for key, value in first.items()}
    inputs |= {"logits_to_keep": first["labels"].shape[1], "use_cache": False}
    events = [{**event.as_dict(), "step": 0} for event in method.start_task(task.name, inputs)]
    if method.recognises_tasks:
        for batch in prompt_batches(tokenizer, task.train, examples.max_length, model.device):
            method.observe_prompts(batch.input_ids, batch.attention_mask)
    trainer = AnswerTrainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=[callback],
        penalties=[*(ewc.penalties(model) if ewc else ()), method.penalty],
    )
    trainer.remove_callback(PrinterCallback)  # without a terminal it would fill standard output
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    # Mixed precision wraps `forward`. A run that is resumed after this task scores without that wrapper, so this one
    # must too.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if getattr(arguments, CHECKPOINTING):
        model.gradient_checkpointing_disable()
    events += noted_events(trainer.state)
    events += [{**event.as_dict(), "step": trainer.state.global_step} for event in method.end_task()]
    return TrainedTask(trainer.state, events, resumed=checkpoint is not None)
