"""A user's own file as a task: what its columns are, and how rows become items."""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jinja2 import TemplateError

from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.evaluation.batching import UNLIMITED
from himalaya_adapter.evaluation.text_metrics import metric_by_name
from himalaya_adapter.streams.encoding import encode_prompt, encode_target
from himalaya_adapter.streams.items import BROKEN, EMPTY, NOT_UTF8, fields_of, item_of
from himalaya_adapter.streams.readers import BadRow, Row
from himalaya_adapter.streams.splits import content_hash
from himalaya_adapter.streams.task import Item, Source, Task, TaskSpec, normal_label

logger = logging.getLogger(__name__)
PROMPT_COMPLETION = "{prompt}", "{completion}"
ALPACA = "### Instruction:\n{instruction}\n\n### Response:", "{output}"
ALPACA_INPUT = "{instruction}\n\n### Input:\n{input}"
LABEL_METRICS = ("accuracy", "macro_f1")
# Targets are taken for labels if there are no more of them than this, each as short and on average as frequent.
MOST_LABELS, LONGEST_LABEL, ITEMS_A_LABEL = 20, 40, 5
LONGEST_ANSWER = 256  # tokens that are generated to score an item
# A value that loses at its ends no more than a space or a line break.
TRIM = re.compile(r"\s?\S(.*\S)?\s?|\s*", re.DOTALL)
BAD_CHAT, TOO_LONG = "not a conversation", "too long"


@dataclass(frozen=True)
class Form:
    """How a task's rows become items, and how answers are scored. It is kept beside the adapter.

    Args:
        prompt: Template of the prompt, with columns in braces; empty for conversations.
        target: Template of the answer.
        chat: Whether a row is a conversation: ``messages``, written with the backbone's chat template.
        metric: Name of the metric.
        labels: All answers there are, if the task is a classification.
        max_new_tokens: How far an answer is generated to be scored.
        lines: Whether no answer that was learnt spans lines; ``None`` if nobody has written it down.
        cut_by: Template of the prompts by whose hash items are held out, if it is another one than ``prompt``: a task
            that is learnt further with another template keeps the rows that are held out.
    """

    prompt: str
    target: str
    chat: bool = False
    metric: str = ""
    labels: tuple[str, ...] = ()
    max_new_tokens: int = LONGEST_ANSWER
    lines: bool | None = None
    cut_by: str = ""


@dataclass(frozen=True)
class OwnTask(Task):
    """A task of a user's file.

    Args:
        lines: Whether no answer that was learnt before spans lines.
    """

    lines: bool = True

    @property
    def answers_are_lines(self) -> bool:
        """Whether no training target spans lines, then or now."""
        return self.lines and super().answers_are_lines


@dataclass(frozen=True)
class OwnData:
    """The items of a user's file.

    Args:
        form: How they were made.
        items: All of them, in the order of the rows.
        left_out: Reason to the number of rows that gave no item.
    """

    form: Form
    items: tuple[Item, ...]
    left_out: Counter[str] = field(default_factory=Counter)

    def task(self, name: str, train: Sequence[Item], test: Sequence[Item]) -> Task:
        """These items as a task: what is learnt, and what is scored."""
        spec = _spec(name, self.form)
        hashes = {"train": content_hash(train), "test": content_hash(test)}
        lines = self.form.lines is not False
        return OwnTask(spec, tuple(train), (), tuple(test), hashes, self.left_out, lines)

    def scored(self, name: str, test: Sequence[Item]) -> Task:
        """Some of these items as a task that has been learnt from others."""
        return self.task(name, () if self.form.lines else self.items, test)


def read_data(
    rows: Sequence[Row | BadRow],
    name: str,
    tokenizer: Any,
    context: int,
    *,
    known: Form | None = None,
    templates: tuple[str, str] | None = None,
    metric: str | None = None,
    skip_bad_rows: bool = False,
    new_labels: bool = True,
) -> OwnData:
    """Make items of rows.

    Args:
        rows: What `read_rows` returns.
        name: What the rows come from, for messages.
        tokenizer: The backbone's.
        context: The most tokens that it reads (`context_of`).
        known: The form of a task that has been learnt before.
        templates: Those of prompt and answer, where the columns do not speak for themselves.
        metric: Name of the metric; by default accuracy where the answers are labels, else chrF.
        skip_bad_rows: Leave out and count a row that gives no item.
        new_labels: Whether a known classification may get answers that it has never seen: it cannot be right there.

    Raises:
        HimalayaError: Unknown columns or metric, or the first row that gives no item.
    """
    if metric is not None:
        metric_by_name(metric)
    form = _form([row for row in rows if not isinstance(row, BadRow)], name, known, templates)
    if form.chat and tokenizer.chat_template is None:
        raise HimalayaError(
            f"{name} holds conversations, and the backbone has no chat template: use prompt/completion"
        )
    items, left_out, cut = [], Counter[str](), 0
    spec = _spec(name, replace(form, labels=()))  # a known classification may get new labels
    columns = fields_of(spec)
    cut_by = replace(spec, template=form.cut_by or form.prompt)
    for number, row in enumerate(rows, start=1):
        where = f"row {number} of {name}"
        try:
            if isinstance(row, BadRow):
                raise BadRow(row.reason, f"{where} {row}")
            found = [*_conversation(row, tokenizer, where)] if form.chat else [_item(spec, cut_by, row, where)]
            for item in found:
                _check_length(item, tokenizer, context, where)
        except BadRow as error:
            if not skip_bad_rows:
                raise HimalayaError(f"{error} (--skip-bad-rows leaves such rows out)") from error
            left_out[error.reason] += 1
        else:
            items += found
            cut += any(TRIM.fullmatch(str(row[column])) is None for column in columns)
    if cut:
        logger.warning(
            "%s: white space at the ends of a text is not learnt, such as indentation (rows: %d)", name, cut
        )
    if not items:
        raise HimalayaError(f"{name} gives no item: {', '.join(left_out)}")
    form = replace(form, **_scoring(items, known, metric, tokenizer))
    if form.labels:
        items = [replace(item, target=normal_label(item.target)) for item in items]
    learnt = [*map(normal_label, known.labels)] if known is not None and not new_labels else []
    for label in form.labels:
        if learnt and label not in learnt:
            raise HimalayaError(f"{name} has the answer '{label}'; the task has learnt: {', '.join(learnt)}")
    return OwnData(form, tuple(items), left_out)


def _form(rows: Sequence[Row], name: str, known: Form | None, templates: tuple[str, str] | None) -> Form:
    """The form that was asked for, or that the task has been learnt in, or that the columns speak for."""
    if not rows:
        raise HimalayaError(f"{name} holds no row that can be read")
    columns = {str(column) for row in rows for column in row}
    there = f"{name} has the columns {', '.join(sorted(columns))}"
    first = rows[0]  # a row of another form among the others is a bad one
    chat = "messages" in first or isinstance(first.get("prompt"), list)
    if templates is not None:
        form = Form(*templates)
        for column in fields_of(_spec(name, form)):
            if column not in columns:
                raise unknown_name(f"column of {name}", column, columns)
        return form if known is None else replace(form, lines=known.lines, cut_by=known.cut_by or known.prompt)
    if known is not None:
        fits = chat if known.chat else columns.issuperset(fields_of(_spec(name, known)))
        if fits:
            return known
        how = "conversations" if known.chat else f"{known.prompt!r} -> {known.target!r}"
        raise HimalayaError(
            f"{there}; the task has been learnt as {how}: rename the columns, or give "
            "--prompt and --target, which changes how its questions are put"
        )
    if chat:
        return Form("", "", chat=True)
    for form in (Form(*PROMPT_COMPLETION), Form(*ALPACA)):
        if columns.issuperset(fields_of(_spec(name, form))):
            return form
    raise HimalayaError(
        f"{there}; expected prompt and completion, messages, or instruction and output: "
        "say how a row becomes a question and its answer: --prompt 'Ticket: {text}\\nTeam:' --target '{team}'"
    )


def _spec(name: str, form: Form) -> TaskSpec:
    """The task as the floors below know it. Rows with the same prompt have the same source."""
    spec = TaskSpec(
        name=name,
        language="",
        kind="classification" if form.labels else "generation",
        source=Source(group=()),
        template=form.prompt,
        target=form.target,
        metric=form.metric,
        label_of={label: label for label in form.labels},
        max_new_tokens=form.max_new_tokens,
    )
    return spec if form.chat else replace(spec, source=replace(spec.source, group=tuple(fields_of(spec))))


def _item(spec: TaskSpec, cut_by: TaskSpec, row: Row, where: str) -> Item:
    """What a row gives; its source is its prompt in the template that items are held out by."""
    item = _filled(spec, row, where)
    try:
        return replace(item, source=_filled(cut_by, row, where).prompt)
    except BadRow:  # it has not the values of that template, so it has never been an item
        return replace(item, source=item.prompt)


def _filled(spec: TaskSpec, row: Row, where: str) -> Item:
    if spec.template == ALPACA[0] and row.get("input") and str(row["input"]).strip():
        spec = replace(spec, template=spec.template.replace("{instruction}", ALPACA_INPUT))
    item = item_of(spec, fields_of(spec), row, where)
    assert item is not None  # nothing in such a task leaves a good row out
    return item


def _conversation(row: Row, tokenizer: Any, where: str) -> Iterator[Item]:
    """An item for each answer of the assistant, with all that was said before it."""
    try:
        prompt = list(row["messages"] if "messages" in row else row["prompt"])
        messages = prompt if "messages" in row else prompt + list(row["completion"])
        spoken = [(one["role"].strip(), one["content"].strip()) for one in messages]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadRow(BAD_CHAT, f"{where} is no list of messages, each with role and content") from error
    refuse_control_tokens(tokenizer, [content for _, content in spoken], where)
    for role, content in spoken:
        if NOT_UTF8.search(role + content):
            raise BadRow(BROKEN, f"{where} has characters that are not UTF-8; save the file as UTF-8")
        if not content:
            raise BadRow(EMPTY, f"{where} has an empty message of '{role}'")
    first = 1 if "messages" in row else len(prompt)
    asked_at = next((turn for turn, (role, _) in enumerate(spoken) if role == "user"), 0)
    source = repr(spoken[: max(first, asked_at + 1)])  # a system prompt alone may be all conversations'
    answers = [turn for turn in range(first, len(spoken)) if spoken[turn][0] == "assistant"]
    if not answers:
        raise BadRow(BAD_CHAT, f"{where} has no answer of role 'assistant' after a question")
    for turn in answers:
        try:
            asked = chat_prompt(tokenizer, spoken[:turn])
        except TemplateError as error:
            raise BadRow(BAD_CHAT, f"{where} does not fit the backbone's chat template: {error}") from error
        yield Item(asked, spoken[turn][1], source, chat=True)


def refuse_control_tokens(tokenizer: Any, said: Sequence[str], where: str) -> None:
    """Make sure that nothing that is said in a conversation would be read as the end of a turn, or as another's.

    Raises:
        BadRow: Something would.
    """
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for control in special:
        if any(control in content for content in said):
            raise BadRow(BAD_CHAT, f"{where} says '{control}', which is a control token of the backbone")


def chat_prompt(tokenizer: Any, spoken: Sequence[tuple[str, str]]) -> str:
    """What was said, as pairs of role and content, in the backbone's chat template, up to the next answer."""
    messages = [{"role": role, "content": content} for role, content in spoken]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _check_length(item: Item, tokenizer: Any, context: int, where: str) -> None:
    tokens = len(encode_prompt(tokenizer, item.prompt, UNLIMITED, chat=item.chat))
    tokens += len(encode_target(tokenizer, item.target, chat=item.chat))
    if tokens > context:
        raise BadRow(TOO_LONG, f"{where} has {tokens} tokens with its answer; the backbone reads at most {context}")


def _scoring(items: Sequence[Item], known: Form | None, metric: str | None, tokenizer: Any) -> dict[str, Any]:
    """How answers are scored: as a task's have always been, as is asked for, or as they look."""
    targets = {normal_label(item.target) for item in items}
    longest = max(len(encode_target(tokenizer, one)) for one in {item.target for item in items})
    length = max(known.max_new_tokens if known is not None else 0, min(longest, LONGEST_ANSWER))
    if known is not None and metric in (None, known.metric, *LABEL_METRICS):
        labels = [*map(normal_label, known.labels), *sorted(targets)] if known.labels else []
        return {"metric": metric or known.metric, "labels": (*dict.fromkeys(labels),), "max_new_tokens": length}
    short = all(len(target) <= LONGEST_LABEL and "\n" not in target for target in targets)
    alike = 2 <= len(targets) <= min(MOST_LABELS, len(items) // ITEMS_A_LABEL)
    as_labels = len(targets) > 1 if metric in LABEL_METRICS else metric is None and short and alike
    return {
        "metric": metric or ("accuracy" if as_labels else "chrf"),
        "labels": tuple(sorted(targets)) if as_labels else (),
        "max_new_tokens": length,
    }
