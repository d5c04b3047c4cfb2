"""The README of a bundle."""

from collections.abc import Mapping
from typing import Any

README = """\
# {method} adapter on {backbone}

A language model and one adapter that answers as {count} tasks, as ONNX graphs. All that runs it is in this folder. It
needs Python 3.11 or newer with `numpy` and `onnxruntime` (made with {onnxruntime}); prompts as text need `tokenizers`:

    pip install numpy onnxruntime tokenizers

Copy the folder to the machine and, inside it:

    python run.py check                                  # does this machine compute what the exporting one did?
    python run.py generate --task {task} "…"
    python run.py generate --task {task} --tokens 1,2,3  # token ids in, token ids out: without `tokenizers`
    python run.py latency --threads {threads} --output latency.json

Tasks: {tasks}.

## What the commands tell

- Every command first compares `manifest.json` and every file with its hash. `check` then compares the logits after a
  fixed prompt and the greedy text that follows, without the adapter and as each task, with those that
  {reference} computed at export (`check/*.npy`). Allowed difference of a logit: {tolerance}.
- `latency` times the graph with the adapter against the one without it: in one process, in turns, on pinned CPUs,
  batch 1, 128 tokens at once (prefill) and one token after 128 (decode). It prints the median times, the median of the
  *ratio* with a 95 % interval, and the time of the adapter's operators in ONNX Runtime's profile. The first line says
  which machine that is. `base again` is the graph without the adapter, opened a second time: its ratio is the error of
  the measurement. On a busy machine the intervals are wide: stop what else runs.
- Precision of the backbone's weights: {precision}. {deviation}

## Files

| file | bytes |
|---|---|
{files}

`base.onnx` is the backbone, `adapted.onnx` the backbone with the adapter; both read `weights.bin`. The licence of the
backbone's weights is that of {backbone}.
"""


def readme(manifest: Mapping[str, Any]) -> str:
    """The text of a bundle's README.md, from its manifest."""
    tasks, check = manifest["tasks"], manifest["check"]
    deviation = (
        ""
        if "deviation" not in check
        else (
            f"Quantised weights change the answers: after the fixed prompt a logit differs from PyTorch's by up to "
            f"{check['deviation']:.2g} (fp32: about 1e-5), "
            f"and {check['equal_tokens']:.0%} of the greedy tokens are its own."
        )
    )
    return README.format(
        **{key: manifest[key] for key in ("method", "backbone", "precision", "onnxruntime")},
        **{"count": len(tasks), "task": tasks[0], "tasks": ", ".join(f"`{task}`" for task in tasks), "threads": 4},
        **{"reference": check["reference"], "tolerance": f"{check['tolerance']:.1e}", "deviation": deviation},
        files="\n".join(f"| `{name}` | {entry['bytes']} |" for name, entry in manifest["files"].items()),
    )
