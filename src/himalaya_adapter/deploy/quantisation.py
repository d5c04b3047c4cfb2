"""Graphs with a base of 8- or 4-bit weights, and graphs that share their weights in one file."""

import contextlib
import hashlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

PRECISIONS = ("fp32", "int8", "int4")
BLOCK = 32  # weights of one 4-bit scale
INT8_ACTIVATIONS = 4  # accuracy level of MatMulNBits: products in int8, the fastest on CPUs
SMALLEST_SHARED = 1024  # bytes; smaller tensors stay in the graph, where shape inference needs them
PAGE = 4096  # ONNX Runtime maps a weight into memory if it starts at a page


def quantise(model: onnx.ModelProto, precision: str, weights: Iterable[bytes]) -> onnx.ModelProto:
    """Quantise products with the base's weights: all that is the adapter's stays in 32 bits.

    Args:
        model: A graph with the base, with or without an adapter; it is left as it is.
        precision: ``"fp32"`` changes nothing; ``"int8"`` has a scale for each column and quantises activations on the
            fly; ``"int4"`` has a scale for each block of 32 weights (`com.microsoft::MatMulNBits`).
        weights: Hashes of the base's weights (`tensor_hashes` of the graph without the adapter).
    """
    if precision == "fp32":
        return model
    base, own = set(weights), {tensor.name: tensor for tensor in model.graph.initializer}
    kept = [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and (node.input[1] not in own or _hash(own[node.input[1]]) not in base)
    ]
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


def tensor_hashes(model: onnx.ModelProto) -> set[bytes]:
    """Hashes of all stored tensors of a graph."""
    return {_hash(tensor) for tensor in model.graph.initializer}


def save_sharing(models: Mapping[Path, onnx.ModelProto], weights: Path) -> None:
    """Write graphs whose large tensors lie in one file, each once, however many graphs use it.

    Args:
        models: The graphs by their paths, in the folder of ``weights``; they are left as they are.
        weights: The file of the tensors.
    """
    places: dict[bytes, tuple[int, int]] = {}
    with weights.open("wb") as file:
        for path, model in models.items():
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            for tensor in copy.graph.initializer:
                content = onnx.numpy_helper.to_array(tensor).tobytes()
                if len(content) < SMALLEST_SHARED:
                    continue
                digest = hashlib.sha256(content).digest()
                if digest not in places:
                    file.write(bytes(-file.tell() % PAGE))
                    places[digest] = (file.tell(), len(content))
                    file.write(content)
                for field in ("raw_data", "float_data", "int32_data", "int64_data"):
                    tensor.ClearField(field)
                tensor.raw_data = b""  # `set_external_data` wants the field
                set_external_data(tensor, weights.name, *places[digest])
                tensor.ClearField("raw_data")
            onnx.save(copy, path)


def _hash(tensor: onnx.TensorProto) -> bytes:
    return hashlib.sha256(onnx.numpy_helper.to_array(tensor).tobytes()).digest()
