"""The README of a bundle."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_name("readme.template.md")


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
    return TEMPLATE.read_text(encoding="utf-8").format(
        **{key: manifest[key] for key in ("method", "backbone", "precision", "onnxruntime")},
        **{"count": len(tasks), "task": tasks[0], "tasks": ", ".join(f"`{task}`" for task in tasks), "threads": 4},
        **{"reference": check["reference"], "tolerance": f"{check['tolerance']:.1e}", "deviation": deviation},
        files="\n".join(f"| `{name}` | {entry['bytes']} |" for name, entry in manifest["files"].items()),
    )
