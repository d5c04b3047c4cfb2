"""Graphs with a base of 8- or 4-bit weights."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from himalaya_adapter.deploy.bundle.runner.profile import ADAPTER

PRECISIONS = ("fp32", "int8", "int4")
BLOCK = 32  # weights of one 4-bit scale
INT8_ACTIVATIONS = 4  # accuracy level of MatMulNBits: products in int8, the fastest on CPUs


def quantise(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Quantise products with the base's weights: all that is the adapter's stays in 32 bits.

    Args:
        model: A graph whose nodes of the adapter say so (`name_adapter_nodes`); it is left as it is.
        precision: ``"fp32"`` changes nothing; ``"int8"`` has a scale for each column and quantises activations on the
            fly; ``"int4"`` has a scale for each block of 32 weights (`com.microsoft::MatMulNBits`).
    """
    if precision == "fp32":
        return model
    kept = [node.name for node in model.graph.node if node.name.startswith(ADAPTER)]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with _silent():
        return _int4(copy, kept) if precision == "int4" else _int8(copy, kept)


def _int4(model: onnx.ModelProto, kept: list[str]) -> onnx.ModelProto:
    quantiser = MatMulNBitsQuantizer(
        model, bits=4, block_size=BLOCK, is_symmetric=True, accuracy_level=INT8_ACTIVATIONS, nodes_to_exclude=kept
    )
    quantiser.process()
    return quantiser.model.model


def _int8(model: onnx.ModelProto, kept: list[str]) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            nodes_to_exclude=kept,
            use_external_data_format=True,
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(path)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep ONNX Runtime's quantisers from logging a line for every node."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
