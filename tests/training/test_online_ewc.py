"""Online EWC: its formulas, its hold on a run, and that a run with it is resumed bit for bit."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_runs import in_own_process, results, run_words
from torch import Tensor, nn
from transformers import PrinterCallback, TrainingArguments

from himalaya_adapter.budget import check_budget, count_budget
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.methods.construction import run_method
from himalaya_adapter.storage import read_json
from himalaya_adapter.streams.encoding import IGNORED_LABEL
from himalaya_adapter.training.batches import AnswerCollator, AnswerTrainer, answer_log_likelihoods, answer_loss
from himalaya_adapter.training.online_ewc import (
    DECAY,
    EWC_FILE,
    FISHER_ITEMS,
    OnlineEWC,
    diagonal_fisher,
    scaled_to_mean_one,
    trainable_parameters,
)
from himalaya_adapter.training.stream_runner import run_stream

KILLED = -9
BF16_ROUNDING = 2**-8
PADDING = 1
Examples = list[dict[str, list[int]]]


# Formulas ------------------------------------------------------------------------------------------------------


def test_the_fisher_is_that_of_logistic_regression() -> None:
    """∂ log σ(y (w·x + b)) / ∂w = y σ(−y (w·x + b)) x, and the same without x for b."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    y = torch.where(torch.randn(20, generator=generator) > 0, 1.0, -1.0).double()
    weight = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    unused = torch.ones(2, dtype=torch.float64, requires_grad=True)

    def log_likelihoods() -> Iterator[Tensor]:
        for features, label in zip(x, y, strict=True):
            yield nn.functional.logsigmoid(label * (features @ weight + bias))

    wrong = torch.sigmoid(-y * (x @ weight + bias)).detach()
    fisher = diagonal_fisher([weight, bias, unused], log_likelihoods())
    torch.testing.assert_close(fisher[:3], (wrong[:, None] * x).square().mean(0))
    torch.testing.assert_close(fisher[3], wrong.square().mean())
    assert fisher[4:].tolist() == [0.0, 0.0]


def test_an_item_without_a_finite_gradient_is_left_out() -> None:
    weight = torch.tensor([2.0], requires_grad=True)
    values = (torch.tensor(factor) * weight.sum() for factor in (1.0, torch.inf, 3.0, torch.nan))
    assert diagonal_fisher([weight], values).item() == (1 + 9) / 2
    nothing = diagonal_fisher([weight], [torch.nan * weight.sum()])
    assert scaled_to_mean_one(nothing).item() == 0


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_the_scale_of_the_gradients_is_taken_out(scale: float) -> None:
    """The mean over all numbers is 1, whatever a model's gradients are; their ratios stay."""
    scaled = scaled_to_mean_one(torch.tensor([1.0, 3.0, 6.0, 6.0]) * scale)
    torch.testing.assert_close(scaled, torch.tensor([0.25, 0.75, 1.5, 1.5]))


class Line(nn.Module):
    """``score(x) = weight · x``, with one frozen parameter."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(1.0, width + 1))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def log_likelihoods(self, *inputs: list[float]) -> Iterator[Tensor]:
        """One item per input, whose gradient is that input."""
        return (self.weight @ torch.tensor(one) for one in inputs)


def test_the_penalty_and_its_gradient() -> None:
    model, ewc = Line(), OnlineEWC(0.5)
    assert ewc.penalties(model) == [], "nothing to protect in the first task"
    ewc.consolidate(model, model.log_likelihoods([1.0, 2.0, 1.0]))
    fisher = torch.tensor([0.5, 2.0, 0.5])  # of mean 1
    (penalty,) = ewc.penalties(model)
    assert penalty().item() == 0
    moved = torch.tensor([1.0, -1.0, 2.0])
    with torch.no_grad():
        model.weight += moved
    value = penalty()
    assert value.item() == pytest.approx(0.5 / 2 * (0.5 + 2.0 + 0.5 * 4))
    (gradient,) = torch.autograd.grad(value, [model.weight])
    torch.testing.assert_close(gradient, 0.5 * fisher * moved)


def test_one_fisher_runs_over_all_tasks() -> None:
    model, ewc = Line(), OnlineEWC(1.0)
    ewc.consolidate(model, model.log_likelihoods([3.0, 0.0, 0.0]))
    with torch.no_grad():
        model.weight += 1.0
    ewc.consolidate(model, model.log_likelihoods([0.0, 0.0, 7.0], [0.0, 0.0, 7.0]))
    # Each task has a mean of 1, so the size of its gradients does not count.
    torch.testing.assert_close(ewc.fisher.float(), torch.tensor([3 * DECAY, 0, 3]), rtol=BF16_ROUNDING, atol=0)
    assert ewc.anchor.tolist() == [2.0, 3.0, 4.0], "where the last task has ended"
    with torch.no_grad():
        model.weight -= 1.0
    (penalty,) = ewc.penalties(model)
    assert penalty().item() == pytest.approx((3 * DECAY + 3) / 2, rel=BF16_ROUNDING)


def test_memory_and_strength_stay_bounded_over_many_tasks(tmp_path: Path) -> None:
    model, ewc = Line(), OnlineEWC(1.0)
    sizes = set()
    for task in range(100):
        ewc.consolidate(model, model.log_likelihoods([1.0 + task, 2.0, 1.0]))
        ewc.save(tmp_path, model)
        sizes.add((tmp_path / EWC_FILE).stat().st_size)
        mean = ewc.fisher.float().mean().item()
        expected = (1 - DECAY ** (task + 1)) / (1 - DECAY)
        assert mean == pytest.approx(expected, rel=2 * BF16_ROUNDING / (1 - DECAY))
    assert len(sizes) == 1
    assert [path.name for path in tmp_path.iterdir()] == [EWC_FILE]


def test_what_is_saved_is_what_goes_on(tmp_path: Path) -> None:
    model, ewc = Line(), OnlineEWC(0.3)
    for inputs in ([0.1, 0.2, 0.7], [0.3, 0.3, 0.1]):
        ewc.consolidate(model, model.log_likelihoods(inputs))
    ewc.save(tmp_path, model)
    stored = load_file(tmp_path / EWC_FILE)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in stored.items()} == {
        "weight": (torch.bfloat16, (3,)),  # no anchor: that is the adapter that is saved beside it
    }
    other, again = Line(), OnlineEWC(0.3)
    again.load(tmp_path, other)
    with torch.no_grad():
        for one in (model, other):
            one.weight += torch.tensor([0.1, -0.2, 0.3])
    assert torch.equal(ewc.penalties(model)[0](), again.penalties(other)[0]())
    for one, changed in ((ewc, model), (again, other)):
        one.consolidate(changed, changed.log_likelihoods([0.5, 0.1, 0.2]))
    assert torch.equal(ewc.fisher, again.fisher)


def test_parameters_that_change_between_tasks_are_one_clear_line() -> None:
    model, ewc = Line(3), OnlineEWC(0.4)
    ewc.consolidate(model, model.log_likelihoods([1.0, 1.0, 1.0]))
    wider = Line(4)
    for attempt in (
        lambda: ewc.penalties(wider),
        lambda: ewc.consolidate(wider, wider.log_likelihoods([1.0] * 4)),
        lambda: ewc.penalties(nn.Linear(2, 2)),
    ):
        with pytest.raises(HimalayaError, match=r"model\.adapter\.ewc_lambda=0\.4: .* change between tasks") as caught:
            attempt()
        assert "\n" not in str(caught.value)


# In the Trainer ------------------------------------------------------------------------------------------------


def examples(tokens: range, answers: range, count: int) -> Examples:
    """Prompts of two tokens out of ``tokens``; the first of them decides the answer out of ``answers``."""
    pairs = [(one, other) for one in tokens for other in tokens][:count]
    return [
        {
            "input_ids": [one, other, answers[one % len(answers)]],
            "attention_mask": [1, 1, 1],
            "labels": [IGNORED_LABEL, IGNORED_LABEL, answers[one % len(answers)]],
        }
        for one, other in pairs
    ]


FIRST_TASK = examples(range(10, 18), range(100, 104), 64)
SECOND_TASK = examples(range(18, 26), range(200, 203), 64)


@pytest.fixture
def adapted(tiny_model: Callable[..., Any]) -> PeftModel:
    """A tiny Llama with a LoRA whose weights are all random."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "o_proj", "down_proj"], init_lora_weights=False)
    return get_peft_model(tiny_model(initializer_range=0.1), config)


@pytest.fixture
def learn(adapted: PeftModel, tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., list[float]]:
    """``learn(examples, penalties, **training_arguments)`` trains and returns the logged losses."""

    def learn(task: Examples, penalties: list[Callable[[], Tensor]], accepts_items: bool = True, **more: Any) -> Any:
        settings = {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "num_train_epochs": 4, "seed": 0}
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            **settings | more,
            **{"use_cpu": True, "report_to": "none", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True},
            **{"remove_unused_columns": False, "train_sampling_strategy": "group_by_length"},
        )
        trainer = AnswerTrainer(
            model=adapted,
            args=arguments,
            train_dataset=Dataset.from_list(task),
            data_collator=AnswerCollator(PADDING),
            processing_class=tiny_tokenizer,
            penalties=penalties,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.model_accepts_loss_kwargs = accepts_items
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    return learn


def numbers(model: PeftModel) -> Tensor:
    """All trainable parameters in one vector, copied."""
    return torch.cat([parameter.detach().flatten() for parameter in trainable_parameters(model).values()])


def put(model: PeftModel, values: Tensor) -> None:
    """The reverse of `numbers`."""
    nn.utils.vector_to_parameters(values.clone(), trainable_parameters(model).values())


def mean_loss(model: PeftModel, task: Examples) -> float:
    model.eval()
    with torch.no_grad():
        return answer_loss(model, AnswerCollator(PADDING)(task), "mean")[0].item()


def consolidated(model: PeftModel, task: Examples, strength: float) -> OnlineEWC:
    ewc = OnlineEWC(strength)
    ewc.consolidate(model, answer_log_likelihoods(model, AnswerCollator(PADDING), task[:FISHER_ITEMS]))
    return ewc


@pytest.mark.parametrize(
    ("batch", "accumulated", "accepts_items"), [(4, 1, True), (2, 2, True), (1, 5, True), (2, 2, False)]
)
def test_the_penalty_counts_once_per_step(
    adapted: PeftModel, learn: Callable[..., list[float]], batch: int, accumulated: int, accepts_items: bool
) -> None:
    """One step of gradient descent on four examples; with 1 and 5 the step has fewer batches than are accumulated.

    A model whose loss does not take the number of items has its mean divided by the Trainer.
    """
    ewc = consolidated(adapted, FIRST_TASK, strength=0.4)
    anchor = numbers(adapted)
    start = anchor + 0.01 * torch.randn(anchor.shape, generator=torch.Generator().manual_seed(1))
    sgd = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated, "num_train_epochs": 1}
    ends, losses = [], []
    for penalties in ([], ewc.penalties(adapted)):
        put(adapted, start)
        losses.append(learn(SECOND_TASK[:4], penalties, accepts_items, **sgd, **sizes))
        ends.append(numbers(adapted))
    fisher = ewc.fisher.float()
    torch.testing.assert_close(ends[1] - ends[0], -0.1 * 0.4 * fisher * (start - anchor), atol=2e-6, rtol=1e-3)
    penalty = 0.4 / 2 * (fisher * (start - anchor).square()).sum().item()
    assert [len(logged) for logged in losses] == [1, 1]
    assert losses[1][0] - losses[0][0] == pytest.approx(penalty, rel=1e-2), "the logged loss holds the penalty"


def test_the_strength_spans_from_free_to_frozen(adapted: PeftModel, learn: Callable[..., list[float]]) -> None:
    ewc = consolidated(adapted, FIRST_TASK, strength=1.0)
    start = numbers(adapted)
    ewc.fisher = torch.ones_like(ewc.fisher)
    moved = {}
    for strength in (0.0, 1e-6, 1e6):
        put(adapted, start)
        ewc.strength = strength
        learn(SECOND_TASK, ewc.penalties(adapted), num_train_epochs=2)
        moved[strength] = numbers(adapted) - start
    free = moved[0.0].norm()
    assert (moved[1e-6] - moved[0.0]).norm() < 1e-2 * free
    assert moved[1e6].norm() < 0.05 * free


def test_less_is_forgotten(adapted: PeftModel, learn: Callable[..., list[float]]) -> None:
    put(adapted, 0.1 * numbers(adapted))
    untrained = mean_loss(adapted, FIRST_TASK), mean_loss(adapted, SECOND_TASK)
    learn(FIRST_TASK, [], learning_rate=1e-2)
    learnt = mean_loss(adapted, FIRST_TASK)
    assert learnt < 0.3 * untrained[0]
    ewc = consolidated(adapted, FIRST_TASK, strength=1.0)
    end = numbers(adapted)
    after = {}
    for name, penalties in (("plain", []), ("ewc", ewc.penalties(adapted))):
        put(adapted, end)
        learn(SECOND_TASK, penalties, learning_rate=1e-2)
        after[name] = mean_loss(adapted, FIRST_TASK), mean_loss(adapted, SECOND_TASK)
    forgotten = {name: first - learnt for name, (first, _) in after.items()}
    assert forgotten["ewc"] < 0.5 * forgotten["plain"]
    assert after["ewc"][1] < 0.6 * untrained[1], "and the second task is still learnt"


# In a run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(place: Path) -> list[str]:
    return run_words(place, "LORA_EWC", save_steps=2)


@pytest.fixture(scope="module")
def finished(place: Path, words: list[str]) -> Path:
    """The folder of a run that was never killed."""
    return run_stream(compose_run(words[1:]).run, place / "finished")


@pytest.mark.slow  # tests/training/test_resume.py kills such a run in the suite
def test_a_killed_run_ends_as_one_that_was_not(finished: Path, words: list[str], tmp_path: Path) -> None:
    """Killed in the middle of the second task, and before anything of the third, whose F comes out of the file."""
    for moment in ("task_1/checkpoint-4", "after_1_task_0"):
        assert in_own_process([*words, f"results_dir={tmp_path}"], write=moment) == KILLED
    assert in_own_process([*words, f"results_dir={tmp_path}"]) == 0
    assert results(tmp_path / "lora_ewc") == results(finished)
    assert any(name.startswith(EWC_FILE) for name in results(finished)["tensors"])


def test_every_byte_is_counted(finished: Path, words: list[str]) -> None:
    adapter, ewc = ((finished / "adapter" / name).stat().st_size for name in ("adapter_model.safetensors", EWC_FILE))
    metrics = read_json(finished / "metrics.json")
    assert metrics["stored_bytes"] == adapter + ewc
    assert metrics["ewc_lambda"] == 0.4
    assert metrics["method_name"] == "LORA_EWC"
    lines = (finished / "events.jsonl").read_text(encoding="utf-8").splitlines()
    ends = [event for event in map(json.loads, lines) if event["event"] == "task_end"]
    assert [end["stored_bytes"] for end in ends] == [adapter + ewc] * 3
    assert [end["stored_bytes_by_part"] for end in ends] == [{"adapter": adapter, "ewc": ewc}] * 3
    run = compose_run(words[1:]).run
    budget = count_budget(run).stored
    assert (sum(budget.values()), budget["ewc"]) == (adapter + ewc, ewc)
    exact = (adapter + ewc) / 1_000_000
    check_budget(compose_run([*words[1:], f"model.adapter.total_parameter_budget_mb={exact}"]).run, run_method(run))
    run.model.adapter.total_parameter_budget_mb = exact - 1e-6
    with pytest.raises(HimalayaError, match="the adapter takes"):
        check_budget(run, run_method(run))


def test_the_penalty_has_held_the_run(finished: Path, words: list[str], tmp_path: Path) -> None:
    """Without it the first task comes out the same, and the others do not."""
    assert in_own_process([*words, f"results_dir={tmp_path}", "model.adapter.ewc_lambda=null"]) == 0
    plain, held = (
        [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
        for folder in (tmp_path / "lora_ewc", finished)
    )
    same = [one["loss_last"] == other["loss_last"] for one, other in zip(plain, held, strict=True)]
    assert same == [True, False, False]
    assert not (tmp_path / "lora_ewc" / "adapter" / EWC_FILE).exists()
    assert read_json(tmp_path / "lora_ewc" / "metrics.json")["ewc_lambda"] is None
