"""One adapter a task at 16, 8, 4 and 3 bits: each task is learnt once, and scored as it would be stored at each.

LoReFT of rank 1 and PEFT's Uni-LoRA with as many trained numbers as HIMALAYA, each with an adapter of its own for
every task of package_stream_25. HIMALAYA itself stores 3 bits in any run. A task is trained by the code of a run (400
items, 100 steps of 4), and stored by the code of a run with `model.adapter.bits`: training does not depend on the
bits. The rates are those of the trials: 0.003, and 0.1 for Uni-LoRA (docs/trials.md).

Run: python benchmarks/bits.py [--methods loreft unilora] [--tasks 25] [--output FILE] [--work FOLDER]

Writes one JSON line for each task, method and number of bits. The same command goes on after an interruption, from the
last checkpoint inside a task.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from himalaya_adapter.backbones import load_backbone
from himalaya_adapter.evaluation.scoring import evaluate_task
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.methods.construction import adapt, run_method
from himalaya_adapter.methods.packed_adapter import PACKED_FILE, PackedAdapter, trainable_parameters
from himalaya_adapter.streams import Limits, Stream, Task, load_stream
from himalaya_adapter.training.environment import describe_environment, processor_name
from himalaya_adapter.training.run_store import RunStore
from himalaya_adapter.training.stream_runner import StreamRunner

OUTPUT = Path(__file__).parent / "results" / "bits.jsonl"
LIKE = "run=himalaya-package25"  # whose training, data and scoring all have
LINEAR = "[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"
UNILORA = f"{{r: 4, theta_d_length: 6912, proj_seed: 0, target_modules: {LINEAR}}}"
METHODS = {
    "loreft": ["model.adapter.type=LOREFT", "model.adapter.options={r: 1}", "model.adapter.per_task=true"],
    "unilora": [
        *("model.adapter.type=UNILORA", f"model.adapter.options={UNILORA}", "model.adapter.per_task=true"),
        "training.learning_rate=0.1",
    ],
}
BITS = (16, 8, 4, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--tasks", type=int, default=None, help="only the first so many")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--work", type=Path, default=Path("outputs/bits"), help="where the runs' folders lie")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of all runs, as backbone=FOLDER")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        scored = [Scored(name, arguments.set, arguments.work, stack) for name in arguments.methods]
        for index, task in enumerate(scored[0].stream.tasks[: arguments.tasks]):
            for method in scored:
                for line in method.lines(index, task, known(arguments.output)):
                    with arguments.output.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                    print(*(line[key] for key in ("task", "method", "bits", "bytes", "score")), flush=True)


def known(output: Path) -> set[tuple[str, str, int]]:
    """Task, method and bits of the lines that are there."""
    lines = output.read_text(encoding="utf-8").splitlines() if output.is_file() else []
    return {(line["task"], line["method"], line["bits"]) for line in map(json.loads, lines)}


class Scored:
    """One method on the stream.

    Args:
        name: Of `METHODS`.
        overrides: Keys of its run.
        work: Where its run's folder lies.
        stack: What keeps other processes off the folder, for as long as it is open.
    """

    def __init__(self, name: str, overrides: Sequence[str], work: Path, stack: ExitStack) -> None:
        self.name = name
        words = [LIKE, f"run_id=bits-{name}", "model.adapter.total_parameter_budget_mb=null", *METHODS[name]]
        self.config = compose_run([*words, *overrides]).run
        self.stream = load(self.config)
        self.store = RunStore(work / self.config.run_id, asdict(self.config))
        backbone = load_backbone(self.config.model.backbone.name, dtype=self.config.model.backbone.dtype)
        self.tokenizer = backbone.tokenizer
        self.model = adapt(backbone.model, run_method(self.config), self.config.training.seed)
        stack.enter_context(self.store.locked())
        self.store.begin(describe_environment(self.config.training.seed, self.stream, backbone))
        self.runner = StreamRunner(self.config, self.store, self.stream, (), backbone, self.model)
        self.packed = {bits: PackedAdapter(self.model, bits) for bits in BITS}
        if self.store.learned():
            self.runner._load_adapter(self.store.adapter_path(len(self.store.learned()) - 1))

    def lines(self, index: int, task: Task, there: set[tuple[str, str, int]]) -> Iterator[dict[str, Any]]:
        """Learn the task, if it is not learnt, and score it at all bits that are missing."""
        missing = [bits for bits in BITS if (task.name, self.name, bits) not in there]
        if not missing:
            return
        if index >= len(self.store.learned()):
            self.runner._learn(index, task)
        trained = {name: one.detach().clone() for name, one in trainable_parameters(self.model).items()}
        record = self.store.learned()[index]
        for bits in missing:
            size = self._store(bits, trained)
            yield {
                **{"index": index, "task": task.name, "method": self.name, "bits": bits, "bytes": size},
                **self._score(task),
                **{"steps": record["steps"], "train_seconds": round(record["train_seconds"], 1)},
                **{"cpu": processor_name(), "dtype": str(self.model.dtype).removeprefix("torch.")},
            }
        with torch.no_grad():
            for name, parameter in trainable_parameters(self.model).items():
                parameter.copy_(trained[name])

    def _store(self, bits: int, trained: dict[str, torch.Tensor]) -> int:
        """Round what was trained, as a run does when a task ends; returns the bytes of the file."""
        with torch.no_grad():
            for name, parameter in trainable_parameters(self.model).items():
                parameter.copy_(trained[name])
        self.packed[bits].round(self.model)
        self.packed[bits].save(self.store.folder)
        return (self.store.folder / PACKED_FILE).stat().st_size

    def _score(self, task: Task) -> dict[str, Any]:
        started = time.perf_counter()
        settings = self.config.evaluation
        found = evaluate_task(
            self.model,
            self.tokenizer,
            task,
            split=settings.split,
            batch_size=settings.eval_batch_size,
            max_length=self.config.dataset.max_seq_length,
        )
        scores = {"score": found.score, "low": found.low, "high": found.high, "n": found.n, "metric": found.metric}
        seconds = {"eval_seconds": round(time.perf_counter() - started, 1)}
        return scores | {"item_scores": [round(one, 4) for one in found.item_scores]} | seconds


def load(config: RunConfig) -> Stream:
    """The run's stream."""
    limits = Limits(
        train=config.dataset.max_samples_per_task, validation=None, test=config.dataset.max_test_samples_per_task
    )
    return load_stream(config.dataset.name, limits=limits)


if __name__ == "__main__":
    main()
