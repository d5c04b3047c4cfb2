"""Scores every task of a finished run again with the adapter of its end, and compares item by item.

A run measures a task's score again only if the hash of what answers the task has changed. Here nothing that was
stored is used, so a task that answers otherwise than right after it was learnt is seen.

Run: python benchmarks/score_again.py RUN_FOLDER [--output FILE.json]
"""

import argparse
from pathlib import Path
from typing import Any

from himalaya_adapter.deploy.adapter_folder import load_adapter
from himalaya_adapter.evaluation.item_scores import DECIMALS
from himalaya_adapter.evaluation.scoring import evaluate_task
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.storage import read_json, write_json
from himalaya_adapter.streams import Limits, load_stream

OUTPUT = Path(__file__).parent / "results" / "scored_again.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="of a run scored on test items, with one adapter for all tasks")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    chosen = parser.parse_args()
    write_json(chosen.output, scored_again(chosen.folder))


def scored_again(folder: Path) -> dict[str, Any]:
    """How many items score otherwise than right after their task was learnt, and by how much the tasks' scores differ.

    Args:
        folder: The run's.
    """
    run = compose_run([f"run={folder / 'config.yaml'}"]).run
    limits = Limits(train=run.dataset.max_samples_per_task, test=run.dataset.max_test_samples_per_task)
    tasks = {task.name: task for task in load_stream(run.dataset.name, limits=limits).tasks}
    rows, matrix = read_json(folder / "item_scores.json")["rows"], read_json(folder / "matrix.json")
    adapter = load_adapter(folder)
    items, changed, differences = 0, 0, []
    for index, name in enumerate(matrix["tasks"]):  # in the order in which they were learnt
        adapter.model.set_task(name)
        found = evaluate_task(
            adapter.model,
            adapter.tokenizer,
            tasks[name],
            batch_size=run.evaluation.eval_batch_size,
            max_length=run.dataset.max_seq_length,
        )
        again = [round(score, DECIMALS) for score in found.item_scores]
        items += len(again)
        changed += sum(one != other for one, other in zip(again, rows[index][index], strict=True))
        differences.append(found.score - matrix["rows"][index][index]["score"])
        print(f"{name}: {found.score:.4f}, {changed} of {items} items changed so far", flush=True)
    largest = max(map(abs, differences))
    return {"run": run.run_id, "tasks": len(tasks), "items": items, "changed": changed, "largest_difference": largest}


if __name__ == "__main__":
    main()
