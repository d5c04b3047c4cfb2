"""Scoring against slow and obvious ways to compute the same: one item, one token at a time, no cache, no padding."""

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.batching import Batch, prompt_batches
from himalaya_adapter.evaluation.generation import generate_texts, stop_tokens
from himalaya_adapter.evaluation.labels import choose_labels
from himalaya_adapter.evaluation.scoring import TaskScore, evaluate_task
from himalaya_adapter.streams.encoding import encode_item, encode_prompt, encode_target
from himalaya_adapter.streams.task import Item, Limits, Source, Task, TaskSpec

DIFFERENT_STARTS = ("yes", "no", "maybe so")
SHARED_STARTS = ("good film", "good play", "bad film")
MAX_LENGTH = 128


def make_task(
    kind: str, items: list[tuple[str, str]], *, labels: tuple[str, ...] = (), metric: str = "accuracy"
) -> Task:
    source = Source(archive=None, files=(), reader="jsonl", options={}, where={}, group=())
    spec = TaskSpec(
        name="trial",
        language="en",
        kind=kind,
        source=source,
        template="",
        target="",
        metric=metric,
        label_of={label: label for label in labels},
        max_new_tokens=12,
        caps=Limits(),
        max_prompt_characters=1000,
        max_target_characters=1000,
        description="",
    )
    split = tuple(Item(prompt, target, str(number)) for number, (prompt, target) in enumerate(items))
    return Task(spec=spec, train=split, validation=(), test=split)


def prompts_of_many_lengths(count: int) -> list[str]:
    # Lengths go up and down, so that sorting by length has to be undone.
    return [f"Text: number {i} {'the sky ' * (i * 7 % 11)}\nAnswer:" for i in range(count)]


def label_task(labels: tuple[str, ...], metric: str = "accuracy") -> Task:
    items = [(prompt, labels[i % 3]) for i, prompt in enumerate(prompts_of_many_lengths(18))]
    return make_task("classification", items, labels=labels, metric=metric)


def generation_task() -> Task:
    answers = ["blue", "the big dog", "Кошка на окне", "Hund schläft"]
    items = [(prompt, answers[i % 4]) for i, prompt in enumerate(prompts_of_many_lengths(12))]
    return make_task("generation", items, metric="chrf")


def train_half_way(model: Any, tokenizer: Any, task: Task, *, steps: int) -> None:
    """Teach the answer format and some of the answers, so that the model writes labels, right and wrong ones."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    encoded = [encode_item(tokenizer, item, MAX_LENGTH) for item in task.train]
    width = max(len(item["input_ids"]) for item in encoded)
    padding = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}
    batch = {
        key: torch.tensor([item[key] + [fill] * (width - len(item[key])) for item in encoded])
        for key, fill in padding.items()
    }
    model.train()
    for _ in range(steps):
        model(**batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()


def evaluate(model: Any, tokenizer: Any, task: Task, **changes: Any) -> TaskScore:
    return evaluate_task(model, tokenizer, task, **{"batch_size": 5, "max_length": MAX_LENGTH} | changes)


@torch.no_grad()
def brute_force_label(model: Any, tokenizer: Any, prompt: str, labels: tuple[str, ...]) -> int:
    scores = []
    ends = sorted(stop_tokens(tokenizer, newline_ends=True))
    for label in labels:
        answer = encode_target(tokenizer, label)[:-1]
        start = encode_prompt(tokenizer, prompt, MAX_LENGTH)
        probabilities = model(torch.tensor([start + answer])).logits[0].double().softmax(-1)[len(start) - 1 :]
        of_tokens = [row[token].item() for row, token in zip(probabilities, answer, strict=False)]
        scores.append(math.prod(of_tokens) * probabilities[-1, ends].sum().item())
    return max(range(len(labels)), key=scores.__getitem__)


@torch.no_grad()
def brute_force_text(model: Any, tokenizer: Any, prompt: str, newline_ends: bool = True) -> str:
    tokens = encode_prompt(tokenizer, prompt, MAX_LENGTH)
    answer: list[int] = []
    for _ in range(12):
        token = int(model(torch.tensor([tokens + answer])).logits[0, -1].argmax())
        if token in tokenizer.all_special_ids or (newline_ends and "\n" in tokenizer.decode([token])):
            break
        answer.append(token)
    return tokenizer.decode(answer).strip()


@pytest.fixture(
    scope="module", params=[DIFFERENT_STARTS, SHARED_STARTS], ids=["first tokens differ", "first tokens shared"]
)
def half_trained(request, tiny_model, tiny_tokenizer) -> tuple[LlamaForCausalLM, Task]:
    task = label_task(request.param)
    model = tiny_model(seed=1)
    train_half_way(model, tiny_tokenizer, task, steps=35)
    return model, task


@pytest.mark.parametrize("kind", ["classification", "generation"])
def test_a_prompt_leaves_room_for_the_answer_in_the_models_positions(tiny_tokenizer, kind: str) -> None:
    config = GPT2Config(vocab_size=len(tiny_tokenizer), n_positions=48, n_embd=16, n_layer=1, n_head=1)
    labels = SHARED_STARTS if kind == "classification" else ()
    task = make_task(kind, [("the sky is blue " * 20 + "Answer:", "good film")] * 3, labels=labels)
    assert evaluate(GPT2LMHeadModel(config).eval(), tiny_tokenizer, task, max_length=48).n == 3


def test_the_two_label_sets_are_what_their_names_say(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    starts = [
        {encode_target(tiny_tokenizer, label)[0] for label in labels} for labels in (DIFFERENT_STARTS, SHARED_STARTS)
    ]
    assert [len(tokens) for tokens in starts] == [3, 2]


@pytest.mark.parametrize("labels", [DIFFERENT_STARTS, SHARED_STARTS])
def test_label_scoring_equals_brute_force_on_a_random_model(tiny_model, tiny_tokenizer, labels) -> None:
    task = label_task(labels)
    model = tiny_model(initializer_range=0.5)  # large weights: predictions that differ between prompts
    expected = [brute_force_label(model, tiny_tokenizer, item.prompt, labels) for item in task.test]
    assert len(set(expected)) > 1
    right = tuple(float(labels[label] == item.target) for label, item in zip(expected, task.test, strict=True))
    score = evaluate(model, tiny_tokenizer, task)
    assert score.item_scores == right
    assert score.score == pytest.approx(sum(right) / len(right))


def test_label_scoring_equals_brute_force_on_a_trained_model(half_trained, tiny_tokenizer) -> None:
    model, task = half_trained
    labels = task.spec.labels
    right = tuple(
        float(labels[brute_force_label(model, tiny_tokenizer, item.prompt, labels)] == item.target)
        for item in task.test
    )
    assert evaluate(model, tiny_tokenizer, task).item_scores == right


NO, YES, COMMA, BUT, END, PROMPT = range(6)
# What follows a token, as in a question that is mostly answered with "no"; all else of a row is for the end.
FOLLOWS = {PROMPT: {NO: 0.6, YES: 0.4}, YES: {COMMA: 0.95}, COMMA: {BUT: 1.0}}


class Bigrams(torch.nn.Module):
    """A language model whose next token depends on the last one alone, with the probabilities above."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.tensor([[FOLLOWS.get(row, {}).get(token, 0.0) for token in range(6)] for row in range(6)])
        table[:, END] = 1 - table.sum(dim=1)
        self.logits = torch.nn.Parameter(table.log())
        self.passes = 0

    device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        self.passes += 1
        return SimpleNamespace(logits=self.logits[input_ids], past_key_values=None)


@pytest.mark.parametrize("labels", [[[NO], [YES]], [[YES], [NO]], [[NO], [YES], [YES, COMMA, BUT]]])
def test_the_whole_answer_with_its_end_decides_whatever_other_labels_there_are(labels: list[list[int]]) -> None:
    """P(no) = .60, P(yes, but) = .38, P(yes) = .02: neither a length nor another label may turn that around."""
    model, batch = Bigrams(), Batch([0], torch.tensor([[PROMPT]]), torch.tensor([[1]]))
    with torch.no_grad():
        (choice,) = choose_labels(model, batch, labels, [END])
    assert choice == (labels.index([NO]), labels.index([NO]))
    assert model.passes == 2  # the prompt, and the one label that no other can beat
    with torch.no_grad():
        model.logits[PROMPT, [NO, YES]] = torch.tensor([0.3, 0.7]).log()
        (choice,) = choose_labels(model, batch, labels, [END])
    # Greedy generation writes the long answer where it is a label, and nothing that is one where it is not.
    longest = len(labels) - 1
    expected = (longest, longest) if len(labels) == 3 else (labels.index([NO]), None)
    assert choice == expected


def test_strict_equals_generating_and_comparing(half_trained, tiny_tokenizer) -> None:
    model, task = half_trained
    written = [brute_force_text(model, tiny_tokenizer, item.prompt) for item in task.test]
    hits = sum(text == item.target for text, item in zip(written, task.test, strict=True))
    assert 0 < hits < len(task.test)
    assert evaluate(model, tiny_tokenizer, task).strict == pytest.approx(hits / len(task.test))


def test_strict_is_zero_where_the_label_is_chosen_but_never_written(tiny_model, tiny_tokenizer) -> None:
    task = label_task(DIFFERENT_STARTS)
    model = tiny_model(initializer_range=0.5)
    score = evaluate(model, tiny_tokenizer, task)
    assert score.score > 0
    assert score.strict == 0


def test_strict_needs_the_answer_to_end(half_trained, tiny_tokenizer) -> None:
    model, task = half_trained
    ends_well = evaluate(model, tiny_tokenizer, task)
    going_on = copy.deepcopy(model)
    tokens = sorted(stop_tokens(tiny_tokenizer, newline_ends=True))
    with torch.no_grad():  # the model can no longer end an answer; nothing else changes
        untied = torch.nn.Linear(64, going_on.config.vocab_size)
        untied.weight.copy_(model.lm_head.weight)
        untied.bias.zero_()
        untied.bias[tokens] = -1e4
    going_on.lm_head = untied
    score = evaluate(going_on, tiny_tokenizer, task)
    assert ends_well.strict > 0
    assert score.strict == 0
    assert score.item_scores == ends_well.item_scores


@pytest.mark.parametrize("task", [label_task(DIFFERENT_STARTS), label_task(SHARED_STARTS), generation_task()])
def test_batch_size_and_padding_do_not_change_the_predictions(tiny_model, tiny_tokenizer, task: Task) -> None:
    model = tiny_model(seed=2, initializer_range=0.3)
    one_by_one = evaluate(model, tiny_tokenizer, task, batch_size=1)
    for batch_size in (4, 100):
        together = evaluate(model, tiny_tokenizer, task, batch_size=batch_size)
        assert together.item_scores == one_by_one.item_scores
        assert (together.low, together.high, together.strict) == (one_by_one.low, one_by_one.high, one_by_one.strict)


def test_generated_texts_equal_brute_force_in_the_order_of_the_items(tiny_model, tiny_tokenizer) -> None:
    task = generation_task()
    model = tiny_model(seed=3)
    train_half_way(model, tiny_tokenizer, task, steps=25)
    expected = [brute_force_text(model, tiny_tokenizer, item.prompt) for item in task.test]
    assert len(set(expected)) > 2
    texts = {}
    for batch in prompt_batches(tiny_tokenizer, task.test, MAX_LENGTH, model.device, 5):
        found = generate_texts(model, tiny_tokenizer, batch, max_new_tokens=12, newline_ends=True)
        texts |= dict(zip(batch.indices, found, strict=True))
    texts = [texts[index] for index in range(len(task.test))]
    assert texts == expected
    score = evaluate(model, tiny_tokenizer, task)
    assert score.strict == sum(t == item.target for t, item in zip(texts, task.test, strict=True)) / len(texts)
    assert score.score == pytest.approx(sum(score.item_scores) / len(texts))


@pytest.mark.parametrize(("target", "expected_strict"), [("one line", 1.0), ("x = 1\nreturn x", 1.0)])
def test_an_answer_ends_at_the_line_unless_targets_span_lines(
    tiny_model, tiny_tokenizer, target, expected_strict
) -> None:
    """After "one line" the model writes a second line, which does not count. Code is generated whole."""
    prompt = "def f(x):\nAnswer:"
    model = tiny_model(seed=4)
    goes_on = f"{target}\nto" if target == "one line" else target
    train_half_way(model, tiny_tokenizer, make_task("code", [(prompt, goes_on)]), steps=60)
    task = make_task("code", [(prompt, target)], metric="edit_similarity")
    assert brute_force_text(model, tiny_tokenizer, prompt, newline_ends=False) == goes_on
    score = evaluate(model, tiny_tokenizer, task)
    assert score.strict == score.score == expected_strict


def test_stop_tokens_hold_every_token_with_a_line_break(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    stop = stop_tokens(tiny_tokenizer, newline_ends=True)
    indent = tiny_tokenizer("\n   ")["input_ids"]
    assert indent[0] in stop
    assert set(tiny_tokenizer("the blue sky")["input_ids"]).isdisjoint(stop)
    assert stop_tokens(tiny_tokenizer, newline_ends=False) == {
        tiny_tokenizer.eos_token_id,
        tiny_tokenizer.pad_token_id,
    }


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_the_interval_holds_the_score_and_the_cell_is_json(tiny_model, tiny_tokenizer, metric: str) -> None:
    score = evaluate(tiny_model(initializer_range=0.5), tiny_tokenizer, label_task(DIFFERENT_STARTS, metric))
    assert 0 <= score.low < score.score < score.high <= 1
    assert score.n == len(score.item_scores) == 18
    assert score.metric == metric
    assert score.seconds > 0


def test_modes_and_gradients_are_left_as_they_were(tiny_model, tiny_tokenizer) -> None:
    model = tiny_model(initializer_range=0.5, attention_dropout=0.5).train()
    model.model.norm.eval()  # a part that somebody keeps in evaluation mode
    before = [module.training for module in model.modules()]
    task = label_task(SHARED_STARTS)
    first, second = (evaluate(model, tiny_tokenizer, task) for _ in range(2))
    assert first.item_scores == second.item_scores == evaluate(model.eval(), tiny_tokenizer, task).item_scores
    model.train()
    model.model.norm.eval()
    with pytest.raises(RuntimeError, match="interrupted"):
        evaluate(model, tiny_tokenizer, task, progress=raise_interrupted)
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    model(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def raise_interrupted(*_: Any) -> None:
    raise RuntimeError("interrupted")


def with_lora(model: LlamaForCausalLM) -> PeftModel:
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    return get_peft_model(model, config)


@pytest.mark.parametrize("task", [label_task(DIFFERENT_STARTS), label_task(SHARED_STARTS), generation_task()])
def test_a_peft_model_is_scored_with_its_adapter(tiny_model, tiny_tokenizer, task: Task) -> None:
    adapted = with_lora(tiny_model(initializer_range=0.3))
    score = evaluate(adapted, tiny_tokenizer, task)
    with adapted.disable_adapter():
        assert evaluate(adapted, tiny_tokenizer, task).item_scores != score.item_scores
    merged = adapted.merge_and_unload()
    assert evaluate(merged, tiny_tokenizer, task).item_scores == pytest.approx(score.item_scores)


@pytest.mark.parametrize("task", [label_task(DIFFERENT_STARTS), label_task(SHARED_STARTS), generation_task()])
def test_a_bfloat16_model_on_the_cpu(tiny_model, tiny_tokenizer, task: Task) -> None:
    score = evaluate(tiny_model().to(torch.bfloat16), tiny_tokenizer, task)
    assert len(score.item_scores) == len(task.test)
    assert all(math.isfinite(value) for value in score.item_scores)


@pytest.mark.parametrize("task", [label_task(DIFFERENT_STARTS), generation_task()])
def test_progress_counts_items(tiny_model, tiny_tokenizer, task: Task) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(tiny_model(), tiny_tokenizer, task, progress=lambda done, total: seen.append((done, total)))
    total = len(task.test)
    assert seen == [(min(done, total), total) for done in range(5, total + 5, 5)]


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (label_task(DIFFERENT_STARTS), {"split": "validation"}, "task 'trial' has no items in its validation split"),
        (make_task("generation", [("Q:", "x")], metric="blue"), {}, "unknown metric 'blue'; did you mean 'bleu'"),
    ],
)
def test_mistakes_end_in_one_clear_line(tiny_model, tiny_tokenizer, task: Task, changes, message: str) -> None:
    with pytest.raises(HimalayaError, match=message):
        evaluate(tiny_model(), tiny_tokenizer, task, **changes)
