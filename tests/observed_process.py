"""``python observed_process.py FOLDER run KEY=VALUE …``: one process of ``himalaya run KEY=VALUE …`` under torchrun.

At its end it leaves in FOLDER the adapter as this process holds it, and which files of the run it has written.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from himalaya_adapter.cli import main
from himalaya_adapter.training import stream_runner


def observe(folder: Path, words: list[str]) -> int:
    rank = os.environ["RANK"]
    results_dir = next(word.removeprefix("results_dir=") for word in words if word.startswith("results_dir="))
    written: set[str] = set()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax"
        if (opened or event in ("os.rename", "os.remove")) and str(arguments[0]).startswith(results_dir):
            written.add(str(arguments[0]))

    class Observed(stream_runner.StreamRunner):
        def run(self, *arguments: Any) -> None:
            super().run(*arguments)
            tensors = {name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(self.model).items()}
            save_file(tensors, folder / f"rank_{rank}.safetensors")

    stream_runner.StreamRunner = Observed
    sys.addaudithook(watch)
    status = main(words)
    (folder / f"written_{rank}.json").write_text(json.dumps(sorted(written)), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(observe(Path(sys.argv[1]), sys.argv[2:]))
