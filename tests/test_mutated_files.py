"""Files of data, runs and adapters with some bytes changed: used as what they are, or refused in one line.

``HIMALAYA_FUZZ=1000`` tries so many of each kind; without it the same few are tried each time.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from tiny_runs import write_backbone, write_stream

from himalaya_adapter import HimalayaConfig, save_release
from himalaya_adapter.deploy.adapter_folder import _alone, load_adapter
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.identity import mark_complete, sealed
from himalaya_adapter.report.run_folder import read_run
from himalaya_adapter.streams import load_stream
from himalaya_adapter.streams.task import SPLITS

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


@tries(60)
@given(changes=mutations, name=st.sampled_from(["rows.jsonl", "rows.csv", "rows.json"]))
def test_rows(changes: list[Mutation], name: str, tmp_path: Path) -> None:
    stream = write_stream(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    written = {
        "rows.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "rows.json": json.dumps(rows),
        "rows.csv": "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]),
    }
    (tmp_path / name).write_bytes(mutated(written[name].encode(), changes))
    content = yaml.safe_load(stream.read_text(encoding="utf-8"))
    for task in content["tasks"]:
        task["source"]["files"] = name
    stream.write_text(yaml.safe_dump(content), encoding="utf-8")
    found = one_line(lambda: load_stream(str(stream)))
    for task in found.tasks if found else ():
        assert all(item.prompt and item.target for split in SPLITS for item in task.split(split))


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
        assert {
            key: found.metrics[key] for key in ("average_accuracy", "forgetting")
        }.items() <= wanted.metrics.items()
    if items:
        for row, of_row in zip(items.item_scores, wanted.scored_items().item_scores, strict=True):
            assert [sum(cell) for cell in row] == pytest.approx([sum(cell) for cell in of_row], abs=0.01)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, tiny_tokenizer: Any) -> Path:
    """A backbone, an adapter on it as a run keeps it, and its release with a card."""
    folder = tmp_path_factory.mktemp("adapters")
    write_backbone(folder / "backbone", tiny_model, tiny_tokenizer)
    model = get_peft_model(tiny_model(), HimalayaConfig(task_type="CAUSAL_LM", elastic_atoms=24, max_tasks=4))
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


@tries(60)
@given(changes=mutations.map(lambda changes: changes[:1]))
def test_model_cards(changes: list[Mutation], adapters: Path) -> None:
    card = adapters / "release" / "README.md"
    content, wanted = card.read_bytes(), _alone(adapters / "release")
    card.write_bytes(mutated(content, changes))
    try:
        found = one_line(lambda: _alone(adapters / "release"))
    finally:
        card.write_bytes(content)
    assert found in (None, wanted)
