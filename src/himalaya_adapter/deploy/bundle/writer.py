"""Writes a bundle: graphs, weights, runner, the answers that it must reproduce, and the hash of every file."""

import shlex
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from himalaya_adapter.deploy.adapter_folder import learnt_facts
from himalaya_adapter.deploy.bundle import runner
from himalaya_adapter.deploy.bundle.runner.check import LOGITS, answers
from himalaya_adapter.deploy.bundle.runner.manifest import DIGEST, MANIFEST, Bundle, digest, sha256
from himalaya_adapter.deploy.neutral_prompt import neutral_prompt
from himalaya_adapter.deploy.onnx.export import load_for_onnx, metadata_of, whole_graph, whole_parity, write_pair
from himalaya_adapter.deploy.onnx.parity import check_parity
from himalaya_adapter.storage import whole_folder, write_json
from himalaya_adapter.streams.encoding import encode_prompt

TEMPLATE = Path(__file__).with_name("readme.template.md")
MOST_START_TOKENS = 8  # a tokenizer adds one or none
# Logits of 32-bit graphs differ by 1e-5 or so; another CPU sums in another order.
TOLERANCE = 1e-3
# Quantised activations turn such a difference into one of a whole step: this part of the logits' spread.
QUANTISED_TOLERANCE = 0.1


def export_bundle(
    folder: Path, output: Path, *, tasks: Sequence[str] = (), precision: str = "fp32", backbone: str | None = None
) -> Path:
    """Write a self-contained folder that runs on any machine with Python, numpy and ONNX Runtime.

    Args:
        folder: A run's folder, the ``adapter`` or ``release`` folder in it, or a copy of one of these.
        output: A new or empty folder; the bundle is there as a whole or not at all.
        tasks: The tasks that the graphs know; all by default.
        precision: Of the backbone's weights, one of `PRECISIONS`; the adapter stays as it is.
        backbone: As for `load_adapter`.

    Raises:
        HimalayaError: A folder that is in use, an adapter that cannot be exported, or graphs in
            32 bits that do not compute what PyTorch does.
    """
    with whole_folder(output) as place:
        adapter = load_for_onnx(folder, tasks, backbone)
        tokenizer, config = adapter.tokenizer, adapter.model.config
        ends = adapter.model.generation_config.eos_token_id
        records = learnt_facts(adapter.folder)["tasks"].items()
        # Of what is exported and himalaya learn has taught.
        forms = {task: record["form"] for task, record in records if record and task in adapter.tasks}
        base, adapted = write_pair(whole_graph(adapter), place, precision)
        parity = whole_parity(adapter, [adapted], base)
        if precision == "fp32":
            check_parity(parity)
        manifest: dict[str, Any] = {
            **metadata_of(adapter),
            "himalaya_adapter": version("himalaya-adapter"),
            "onnxruntime": onnxruntime.__version__,
            "precision": precision,
            "vocabulary": config.vocab_size,
            "templates": {task: None if form["chat"] else form["prompt"] for task, form in forms.items()},
            "start_tokens": encode_prompt(tokenizer, "", MOST_START_TOKENS),
            "end_tokens": [] if ends is None else np.ravel(ends).tolist(),
            "positions": getattr(config, "max_position_embeddings", None),
            "graphs": {"base": base.name, "adapted": adapted.name},
            "deviation": max(outputs["logits"]["max_abs"] for outputs in parity.values()),
            "prompt": neutral_prompt(tokenizer),
        }
        found = list(answers(Bundle(place, manifest)))
        logits = np.stack([logits for logits, _ in found])
        np.save(place / LOGITS, logits)
        manifest["greedy"] = [greedy for _, greedy in found]
        manifest["tolerance"] = TOLERANCE if precision == "fp32" else QUANTISED_TOLERANCE * float(logits.std(1).mean())
        tokenizer.backend_tokenizer.save(str(place / "tokenizer.json"))
        source = Path(runner.__file__).parent
        shutil.copytree(source, place / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(source.with_name("run.py"), place / "run.py")
        names = ", ".join(f"`{task}`" for task in adapter.tasks)
        readme = TEMPLATE.read_text(encoding="utf-8").format(
            **manifest, count=len(adapter.tasks), names=names, task=shlex.quote(adapter.tasks[0])
        )
        (place / "README.md").write_text(readme, encoding="utf-8")
        files = sorted(path for path in place.rglob("*") if path.is_file())
        manifest["files"] = {path.relative_to(place).as_posix(): sha256(path) for path in files}
        manifest[DIGEST] = digest(manifest)
        write_json(place / MANIFEST, manifest)
    return output
