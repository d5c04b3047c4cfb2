"""The batches of a task: the loss is that of the whole model's logits, the order is the seed's and the epoch's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments

from himalaya_adapter.streams.encoding import IGNORED_LABEL
from himalaya_adapter.training.batches import AnswerCollator, AnswerTrainer, LengthGroupedOrder

EXAMPLES = [
    {
        "input_ids": list(range(3, 3 + prompt + answer)),
        "attention_mask": [1] * (prompt + answer),
        "labels": [IGNORED_LABEL] * prompt + list(range(3 + prompt, 3 + prompt + answer)),
    }
    for prompt, answer in ((5, 1), (2, 4), (9, 2), (1, 3))
]


def test_a_batch_is_padded_on_the_left_and_its_labels_end_with_it() -> None:
    batch = AnswerCollator(padding=1)(EXAMPLES[:2])
    assert batch["input_ids"].tolist() == [[3, 4, 5, 6, 7, 8], [3, 4, 5, 6, 7, 8]]
    assert batch["labels"].tolist() == [[-100, -100, -100, -100, 8], [-100, 5, 6, 7, 8]]
    batch = AnswerCollator(padding=1)(EXAMPLES[1:3])
    assert batch["input_ids"][0].tolist() == [1] * 5 + [3, 4, 5, 6, 7, 8]
    assert batch["attention_mask"][0].tolist() == [0] * 5 + [1] * 6
    assert batch["position_ids"][0].tolist() == [0] * 5 + [0, 1, 2, 3, 4, 5]


@pytest.fixture
def trainer(tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path) -> AnswerTrainer:
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        use_cpu=True,
        report_to="none",
    )
    return AnswerTrainer(
        model=tiny_model(),
        args=arguments,
        train_dataset=Dataset.from_list(EXAMPLES),
        data_collator=AnswerCollator(1),
        processing_class=tiny_tokenizer,
    )


def test_the_loss_is_the_mean_over_all_answer_tokens_of_a_step(trainer: AnswerTrainer) -> None:
    collator = AnswerCollator(1)
    batches = [collator(EXAMPLES[:2]), collator(EXAMPLES[2:])]
    iterator = iter([dict(batch) for batch in batches])
    samples, items = trainer.get_batch_samples(iterator, 2, torch.device("cpu"))
    assert items == 1 + 4 + 2 + 3
    loss = sum(trainer.compute_loss(trainer.model, batch, num_items_in_batch=items) for batch in samples)
    summed = torch.zeros(())
    for example in EXAMPLES:  # one by one, with transformers' own loss and no padding
        single = {key: torch.tensor([value]) for key, value in example.items()}
        answer = sum(label != IGNORED_LABEL for label in example["labels"])
        summed = summed + trainer.model(**single).loss * answer
    torch.testing.assert_close(loss, summed / 10)


def test_the_order_depends_on_nothing_but_seed_and_epoch() -> None:
    lengths = [number % 7 for number in range(40)]

    def order(seed: int, epoch: int) -> list[int]:
        torch.rand(1)  # whoever draws from the global generator in between changes nothing
        sampler = LengthGroupedOrder(4, lengths, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert sorted(order(0, 0)) == list(range(40))
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_the_trainer_uses_that_order(trainer: AnswerTrainer) -> None:
    assert isinstance(trainer.get_train_dataloader().batch_sampler.sampler, LengthGroupedOrder)
