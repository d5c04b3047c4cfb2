"""``himalaya tasks``."""

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    adapter: Annotated[Path, typer.Argument(help="An adapter's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it for a program.")] = False,
) -> None:
    """Say what an adapter knows, and how much room is left."""
    from rich.console import Console
    from rich.table import Table

    from himalaya_adapter.learning.adapter_store import AdapterStore, room

    store = AdapterStore(adapter)
    known, left = store.adapter.tasks.known(), room(store.adapter)
    records = {name: store.record(name) for name in known}
    backbone = store.facts["backbone"].get("name") or store.adapter.config.base_model_name_or_path
    if as_json:
        told = {"adapter": str(adapter), "backbone": backbone, "bytes": store.bytes, "room": left, "tasks": records}
        print(json.dumps(told, ensure_ascii=False, indent=2))
        return
    what = f"knows {len(known)} task{'s' * (len(known) != 1)}: {', '.join(known)}" if known else "knows no task yet"
    print(f"{adapter} {what}.")
    print(f"{store.bytes / 1e6:.2f} MB on {backbone}; room for about {left} more tasks of this size.")
    # Records of earlier versions have the score before alone.
    frozen = {name: told.get("score_frozen", told.get("score_before")) for name, told in records.items()}
    weak = [name for name, score in frozen.items() if score is not None and records[name]["score"] <= score]
    if weak:
        print(f"On held-out items it is not better than the frozen model at {', '.join(weak)}.")
    if known:
        print("It knows prompts in the form of its tasks and nothing else.")
        print("Without --task, a prompt that looks like none of them gets the frozen model.")
    table = Table("task", "items learnt", "metric", "frozen", "learnt", "scored on", "question -> answer")
    for name, record in records.items():
        if not record:
            table.add_row(name, *[""] * 5, "learnt in another way than by himalaya learn")
            continue
        form = record["form"]
        asked = "a conversation" if form["chat"] else f"{form['prompt']!r} -> {form['target']!r}"
        scores = ("" if score is None else f"{score:.2f}" for score in (frozen[name], record["score"]))
        table.add_row(name, str(record["items"]), record["metric"], *scores, str(record["held_out"]), asked)
    if known:
        Console(markup=False, emoji=False).print(table)  # [x] and :x: in a prompt are its own
