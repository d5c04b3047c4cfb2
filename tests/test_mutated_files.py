"""Files of data, runs, searches and adapters with some bytes changed: what they are, or refused in one line.

``HIMALAYA_FUZZ=1000`` tries so many of each kind; without it the same few are tried each time.
"""

import bz2
import copy
import gzip
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from tiny_runs import write_backbone, write_stream

from himalaya_adapter import HimalayaConfig, save_release
from himalaya_adapter.deploy.adapter_folder import _find, load_adapter
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.score_cache import ScoreCache
from himalaya_adapter.identity import mark_complete, sealed
from himalaya_adapter.learning.adapter_store import AdapterStore
from himalaya_adapter.learning.data import read_data
from himalaya_adapter.learning.held_out import HeldOut, hold_out
from himalaya_adapter.learning.rows import read_rows
from himalaya_adapter.report import write_search_report
from himalaya_adapter.report.run_folder import SAME, read_run
from himalaya_adapter.storage import write_json
from himalaya_adapter.streams import Item, load_stream
from himalaya_adapter.streams.task import SPLITS
from himalaya_adapter.training.run_store import RunStore

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "demo"
OF_A_RUN = ("metrics.json", "matrix.json", "item_scores.json", "environment.json", "events.jsonl", "config.yaml")
SNIPPETS = [b"", b"0", b"-", b"9e99", b"NaN", b"null", b'"', b"[", b"}", b",", b"\n", b": ", b"\0", b"\xff", b"| <b>"]
Mutation = tuple[float, int, bytes]
mutations = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from([0, 1, 2, 40]), st.sampled_from(SNIPPETS)),
    min_size=1,
    max_size=3,
)


def tries(count: int) -> Callable[[Any], Any]:
    unhealthy = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    long = "HIMALAYA_FUZZ" in os.environ
    return settings(
        max_examples=int(os.environ.get("HIMALAYA_FUZZ", count)),
        derandomize=not long,
        deadline=None,
        suppress_health_check=unhealthy,
    )


def mutated(content: bytes, changes: list[Mutation]) -> bytes:
    """Content in which some places are replaced by something else."""
    for place, length, snippet in changes:
        start = int(place * len(content))
        content = content[:start] + snippet + content[start + length :]
    return content


def one_line(call: Callable[[], Any]) -> Any:
    """What a call returns, None if it refuses in one line; whatever else it raises is a failure."""
    try:
        return call()
    except HimalayaError:
        return None


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def tables(rows: list[dict[str, Any]]) -> dict[str, bytes]:
    """The same rows in every format."""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    csv, tsv = (
        "\n".join([between.join(rows[0]), *(between.join(row.values()) for row in rows)]).encode()
        for between in (",", "\t")
    )
    return {
        "rows.jsonl": lines,
        "rows.json": json.dumps(rows).encode(),
        "rows.csv": csv,
        "rows.tsv": tsv,
        "rows.jsonl.gz": gzip.compress(lines, mtime=0),
        "rows.csv.bz2": bz2.compress(csv),
        "rows.parquet": parquet(rows),
    }


TABLES = ("rows.jsonl", "rows.csv", "rows.json", "rows.tsv", "rows.jsonl.gz", "rows.csv.bz2", "rows.parquet")


@tries(60)
@given(changes=mutations, name=st.sampled_from(TABLES))
def test_rows(changes: list[Mutation], name: str, tmp_path: Path) -> None:
    stream = write_stream(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    (tmp_path / name).write_bytes(mutated(tables(rows)[name], changes))
    content = yaml.safe_load(stream.read_text(encoding="utf-8"))
    for task in content["tasks"]:
        task["source"]["files"] = name
    stream.write_text(yaml.safe_dump(content), encoding="utf-8")
    found = one_line(lambda: load_stream(str(stream)))
    for task in found.tasks if found else ():
        assert all(item.prompt and item.target for split in SPLITS for item in task.split(split))


OWN = {
    "columns": [{"text": f"Is {n} even?", "team": ("yes", "no")[n % 2]} for n in range(40)],
    "answers": [{"prompt": f"Repeat {n}:", "completion": f"{n} {n}"} for n in range(24)],
    "orders": [{"instruction": f"Say {n}.", "input": "loud", "output": f"{n}!"} for n in range(24)],
    "said": [
        {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"{n}!"}]}
        for n in range(24)
    ],
}
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@tries(60)
@given(changes=mutations, kind=st.sampled_from(list(OWN)), place=st.integers(0, 6), skip=st.booleans())
def test_own_data(changes: list[Mutation], kind: str, place: int, skip: bool, tmp_path: Path, talking: Any) -> None:
    name = TABLES[place] if kind != "said" else ("rows.jsonl", "rows.json")[place % 2]
    content = tables(OWN[kind])[name] if kind != "said" else json.dumps(OWN[kind]).encode()
    if kind == "said" and name == "rows.jsonl":
        content = b"".join(json.dumps(row).encode() + b"\n" for row in OWN[kind])
    path = tmp_path / name
    path.write_bytes(mutated(content, changes))

    def read() -> Any:
        templates = ("{text}", "{team}") if kind == "columns" else None
        rows = read_rows(str(path))
        own = read_data(rows, str(path), talking, 512, templates=templates, skip_bad_rows=skip)
        return hold_out(own, str(path), "task", HeldOut(0))[0]

    task = one_line(read)
    if task:
        assert all(item.prompt and item.target for item in (*task.train, *task.test))
        assert task.train
        assert task.test
        assert not {item.prompt for item in task.train} & {item.prompt for item in task.test}


@pytest.fixture(scope="module")
def talking(tiny_tokenizer: Any) -> Any:
    """A tokenizer with a chat template."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of one task has left that was killed while it learnt the second."""
    store = RunStore(tmp_path_factory.mktemp("begun") / "run", RUN_CONFIG)
    store.begin(ENVIRONMENT)
    cell = {"score": 0.5, "low": 0.0, "high": 1.0, "n": 2, "metric": "accuracy", "strict": 0.5, "seconds": 1.0}
    store.write_score("before", 0, {**cell, "item_scores": [0.0, 1.0]})
    store.write_score(0, 0, {**cell, "item_scores": [1.0, 0.0]})
    store.unfinished_adapter.mkdir(parents=True)
    save_file({"a": torch.zeros(3)}, store.unfinished_adapter / "adapter_model.safetensors")
    store.write_learned(0, {"event": "task_end", "index": 0, "task": "first", "steps": 3})
    return store.folder


RUN_CONFIG = {"run_id": "run", "training": {"seed": 0, "learning_rate": 1e-3}, "dataset": {"name": "demo"}}
ENVIRONMENT = {
    **{
        "data_hashes": {"first": {"test": "a"}},
        "backbone_revision": "r",
        "dtype": "float32",
        "processes": 1,
        "scoring": 2,
    },
    "tasks": {"first": {"metric": "accuracy"}},
}
OF_A_BEGUN_RUN = (
    *("config.yaml", "environment.json", "evaluations/after_before_task_0.json", "evaluations/after_0_task_0.json"),
    "checkpoints/record_0.json",
)


def gone_on(folder: Path) -> Any:
    """All that the same run reads when it goes on."""
    store = RunStore(folder, RUN_CONFIG)
    store.begin(ENVIRONMENT)
    return store.score("before", 0), store.score(0, 0), store.learned()


# One place at a time, where an earlier version wrote no hash: the name of the hash may be what has changed.
one_mutation = mutations.map(lambda changes: changes[:1])


@tries(60)
@given(changes=one_mutation, name=st.sampled_from(OF_A_BEGUN_RUN))
def test_begun_runs(changes: list[Mutation], name: str, begun: Path, tmp_path: Path) -> None:
    wanted, copied = gone_on(begun), tmp_path / "run"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(begun, copied)
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(mutated(content, changes))
    found = one_line(lambda: gone_on(copied))
    # Without its hash it is a file of an earlier version, of which no more than its scores can be checked.
    of_before = name.endswith(".json") and b'"sha256"' in content and b'"sha256"' not in (copied / name).read_bytes()
    if found and not of_before:
        *scores, (record,) = found
        before, after, (learnt_then,) = wanted
        for one, other in zip([*scores, record], [before, after, learnt_then], strict=True):
            assert other.items() <= one.items()


@tries(60)
@given(changes=one_mutation)
def test_kept_scores(changes: list[Mutation], tmp_path: Path) -> None:
    identity, score = {"adapter": None, "task": {"items": "a"}, "settings": {}}, {"score": 0.5, "n": 2}
    cache = ScoreCache(tmp_path / "scores", {})
    cache.write(identity, score)
    (path,) = cache.folder.iterdir()
    path.write_bytes(mutated(path.read_bytes(), changes))
    assert cache.read(identity) in (None, score)


@tries(60)
@given(changes=one_mutation)
def test_searches(changes: list[Mutation], tmp_path: Path) -> None:
    trial = {"state": "complete", "parameters": {"r": 2}, "after_task": {"1": 0.5}, "reason": None, "same_as": None}
    search = {
        **{"format": 1, "run_id": "lora", "method_name": "LoRA", "backbone": "b", "stream": "s", "metric": "retained"},
        **{"direction": "maximize", "n_trials": 3, "seed": 0, "best": 1, "importance": None},
        "search_space": {"r": {"key": "model.adapter.options.r", "type": "int", "low": 1.0, "high": 8.0}},
        "trials": [{**trial, "number": number, "value": number / 4, "seconds": 1.0} for number in range(3)],
    }
    path = tmp_path / "trials.json"
    write_json(path, sealed(search))
    wanted = write_search_report(tmp_path).read_bytes()
    path.write_bytes(mutated(path.read_bytes(), changes))
    found = one_line(lambda: write_search_report(tmp_path))
    assert found is None or found.read_bytes() == wanted


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(RESULTS / "lora", tmp_path_factory.mktemp("run") / "lora")


@tries(60)
@given(changes=mutations, name=st.sampled_from(OF_A_RUN))
def test_runs(changes: list[Mutation], name: str, committed: Path) -> None:
    wanted, content = read_run(committed), (committed / name).read_bytes()
    (committed / name).write_bytes(mutated(content, changes))
    try:
        found = one_line(lambda: read_run(committed))
        items = found and one_line(found.scored_items)
        if found:
            one_line(lambda: found.settings)
    finally:
        (committed / name).write_bytes(content)
    if found:
        assert found.scores == wanted.scores
        measured = found.metrics.keys() & {"average_accuracy", "forgetting"}  # a run of before may lack a measure
        for key in measured:
            assert found.metrics[key] == pytest.approx(wanted.metrics[key], abs=SAME)
    if items:
        for row, of_row in zip(items.item_scores, wanted.scored_items().item_scores, strict=True):
            assert [sum(cell) for cell in row] == pytest.approx([sum(cell) for cell in of_row], abs=0.01)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, tiny_tokenizer: Any) -> Path:
    """A backbone, an adapter on it as a run keeps it, and its release with a card."""
    folder = tmp_path_factory.mktemp("adapters")
    write_backbone(folder / "backbone", tiny_model, tiny_tokenizer)
    model = get_peft_model(tiny_model(), HimalayaConfig(task_type="CAUSAL_LM", elastic_atoms=48, max_tasks=4))
    for name in ("first", "second"):
        model.start_task(name)
        with torch.no_grad():
            model.base_model.himalaya_shared["default"].atoms.normal_(0, 0.05)
        model.end_task()
    model.save_pretrained(folder / "adapter")
    mark_complete(folder / "adapter")
    save_release(model, folder / "release")
    facts = sealed({"method": "himalaya", "backbone": {"name": "backbone"}, "tasks": ["first", "second"]})
    head = yaml.safe_dump({"tags": ["himalaya-adapter", "base_model:adapter:backbone"], "himalaya": facts})
    (folder / "release" / "README.md").write_text(f"---\n{head}---\n\n# An adapter\n", encoding="utf-8")
    return folder


def answers(model: PeftModel) -> list[torch.Tensor]:
    found = []
    for name in ("first", "second"):
        model.set_task(name)
        with torch.no_grad():
            found.append(model(input_ids=torch.arange(5, 15)[None]).logits)
    return found


@tries(25)
@given(
    changes=mutations,
    kind=st.sampled_from(["adapter", "release"]),
    name=st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]),
)
def test_adapters(changes: list[Mutation], kind: str, name: str, adapters: Path) -> None:
    path, backbone = adapters / kind / name, str(adapters / "backbone")
    content = path.read_bytes()
    path.write_bytes(mutated(content, changes))
    try:
        found = one_line(lambda: load_adapter(adapters / kind, backbone=backbone, dtype="float32"))
    finally:
        path.write_bytes(content)
    if found:
        wanted = load_adapter(adapters / kind, backbone=backbone, dtype="float32")
        pairs = zip(answers(found.model), answers(wanted.model), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.fixture(scope="module")
def own(adapters: Path) -> Path:
    """An adapter as `himalaya learn` leaves it, with the items that it was asked to keep."""
    config = json.loads((adapters / "adapter" / "adapter_config.json").read_text())
    record = {"items": 3, "form": {"prompt": "{a}", "target": "{b}"}, "score": 0.5}
    facts = {"backbone": {"name": str(adapters / "backbone")}, "tasks": {"first": record, "second": record}}
    kept = {"first": [Item(prompt="a", target="b", source="a")]}
    assert config["peft_type"] == "HIMALAYA"
    store = AdapterStore(adapters / "own")
    store.facts.update(facts)
    store.replace(lambda folder: shutil.copytree(adapters / "adapter", folder, dirs_exist_ok=True), kept)
    return store.folder


def learnt(folder: Path) -> Any:
    """All that `himalaya learn` reads of an adapter before it learns more."""
    store = AdapterStore(folder)
    state = {name: tensor.tolist() for name, tensor in store.adapter.state_dict().items()}
    return store.facts, store.kept("first"), state


@tries(60)
@given(
    changes=mutations,
    name=st.sampled_from(["tasks.json", "kept/first.json", "adapter_config.json", "adapter_model.safetensors"]),
)
def test_learnt_adapters(changes: list[Mutation], name: str, own: Path) -> None:
    wanted, content = learnt(own), (own / name).read_bytes()
    (own / name).write_bytes(mutated(content, changes))
    try:
        found = one_line(lambda: learnt(own))
        alone = one_line(lambda: _find(own))
    finally:
        (own / name).write_bytes(content)
    assert found in (None, wanted)
    assert alone in (None, _find(own))


@tries(60)
@given(changes=one_mutation)
def test_model_cards(changes: list[Mutation], adapters: Path) -> None:
    card = adapters / "release" / "README.md"
    content, wanted = card.read_bytes(), _find(adapters / "release")
    card.write_bytes(mutated(content, changes))
    try:
        found = one_line(lambda: _find(adapters / "release"))
    finally:
        card.write_bytes(content)
    assert found in (None, wanted)
