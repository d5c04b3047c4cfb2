"""Writes a bundle: graphs, weights, runner, the answers that it must reproduce, and the hash of every file."""

import contextlib
import logging
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from himalaya_adapter.deploy.adapter_folder import LoadedAdapter
from himalaya_adapter.deploy.bundle import runner
from himalaya_adapter.deploy.bundle.readme import readme
from himalaya_adapter.deploy.bundle.runner.check import LOGITS, NO_TOKEN, PROMPT, TEXT, answers, check
from himalaya_adapter.deploy.bundle.runner.graph import Array
from himalaya_adapter.deploy.bundle.runner.manifest import (
    DIGEST,
    FORMAT,
    MANIFEST,
    Bundle,
    BundleError,
    digest,
    open_bundle,
    sha256,
)
from himalaya_adapter.deploy.graph_pairs import backbone_graph, write_graphs
from himalaya_adapter.deploy.neutral_prompt import neutral_prompt
from himalaya_adapter.deploy.onnx.export import load_for_onnx
from himalaya_adapter.deploy.quantisation import PRECISIONS
from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.evaluation.generation import GREEDY
from himalaya_adapter.storage import IN_USE, in_use, whole_folder, write_json
from himalaya_adapter.streams.encoding import encode_prompt

logger = logging.getLogger(__name__)
README = "README.md"
NEW_TOKENS = 16
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
        HimalayaError: An unknown precision, a folder that is in use, or an adapter that cannot be exported,
            or graphs that do not answer as PyTorch does.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if in_use(output):
        raise HimalayaError(IN_USE.format(output))
    adapter = load_for_onnx(folder, tasks, backbone=backbone)
    loaded, graph = adapter.loaded, backbone_graph(adapter)
    tokens = neutral_prompt(loaded.tokenizer)
    references = torch_answers(loaded, adapter.tasks, tokens)
    with whole_folder(output) as place:
        graphs = write_graphs(graph, precision, place)
        loaded.tokenizer.backend_tokenizer.save(str(place / "tokenizer.json"))
        source = Path(runner.__file__).parent
        shutil.copytree(source, place / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(source.with_name("run.py"), place / "run.py")
        manifest = {
            "format": FORMAT,
            "himalaya_adapter": version("himalaya-adapter"),
            "onnxruntime": onnxruntime.__version__,
            **{name: adapter.metadata[name] for name in ("method", "backbone", "tasks")},
            "precision": precision,
            "vocabulary": loaded.model.config.vocab_size,
            "start_tokens": encode_prompt(loaded.tokenizer, "", MOST_START_TOKENS),
            "end_tokens": _end_tokens(loaded),
            "positions": getattr(loaded.model.config, "max_position_embeddings", None),
            "graphs": {name: path.name for name, path in graphs.items()},
        }
        manifest["check"] = _write_answers(Bundle(place, manifest), tokens, references)
        files = sorted(path for path in place.rglob("*") if path.is_file())
        manifest["files"] = {path.relative_to(place).as_posix(): _entry(path) for path in files}
        (place / README).write_text(readme(manifest), encoding="utf-8")
        manifest["files"][README] = _entry(place / README)
        manifest[DIGEST] = digest(manifest)
        write_json(place / MANIFEST, manifest)
        try:
            for line in check(open_bundle(place), threads=1):
                logger.info("%s", line)
        except BundleError as error:
            raise HimalayaError(f"the bundle does not compute what PyTorch does: {error}") from error
    return output


def torch_answers(loaded: LoadedAdapter, tasks: Sequence[str], tokens: Array) -> list[tuple[Array, Array]]:
    """What PyTorch answers without the adapter, and with it as each task (`runner.check.answers`)."""
    ids = torch.from_numpy(tokens)[None]
    found = []
    for task in (None, *tasks):
        if task is not None:
            loaded.model.set_task(task)
        with torch.no_grad(), loaded.model.disable_adapter() if task is None else contextlib.nullcontext():
            logits = loaded.model(input_ids=ids).logits[0, -1].numpy()
            text = loaded.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                pad_token_id=loaded.tokenizer.pad_token_id,
                **GREEDY,
            )[0, len(tokens) :].tolist()
        ends = [place for place, token in enumerate(text) if token in _end_tokens(loaded)]
        text = text[: ends[0]] if ends else text
        found.append((logits, np.array(text + [NO_TOKEN] * (NEW_TOKENS - len(text)), np.int64)))
    return found


def _write_answers(bundle: Bundle, tokens: Array, references: list[tuple[Array, Array]]) -> dict[str, Any]:
    """Write what `runner.check` compares with: PyTorch's answers, or those of the quantised graphs.

    Returns:
        The manifest's entry: whose answers they are, the tolerance, and how far a quantised backbone is from PyTorch.
    """
    kept, entry = references, {"reference": f"PyTorch {torch.__version__}", "tolerance": TOLERANCE}
    if bundle.manifest["precision"] != "fp32":
        kept = list(answers(bundle, tokens, NEW_TOKENS))
        pairs = list(zip(kept, references, strict=True))
        entry = {
            "reference": f"ONNX Runtime {onnxruntime.__version__}",
            "tolerance": QUANTISED_TOLERANCE * float(np.mean([logits.std() for logits, _ in kept])),
            "deviation": max(float(np.abs(ours[0] - theirs[0]).max()) for ours, theirs in pairs),
            "equal_tokens": float(np.mean([ours[1] == theirs[1] for ours, theirs in pairs])),
        }
    (bundle.folder / PROMPT).parent.mkdir()
    np.save(bundle.folder / PROMPT, tokens)
    np.save(bundle.folder / LOGITS, np.stack([logits for logits, _ in kept]))
    np.save(bundle.folder / TEXT, np.stack([greedy for _, greedy in kept]))
    return entry


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _end_tokens(loaded: LoadedAdapter) -> list[int]:
    ends = loaded.model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
