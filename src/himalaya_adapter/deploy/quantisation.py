"""Graphs with a base of 8- or 4-bit weights."""

import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from himalaya_adapter.deploy.onnx.writing import silent

PRECISIONS = ("fp32", "int8", "int4")
BLOCK = 32  # weights of one 4-bit scale
INT8_ACTIVATIONS = 4  # accuracy level of MatMulNBits: products in int8, the fastest on CPUs


def quantise(model: ir.Model, precision: str) -> ir.Model:
    """Quantise products with the base's weights: all that is the adapter's, in functions, stays in 32 bits.

    Args:
        model: A graph; it is left as it is.
        precision: ``"fp32"`` changes nothing; ``"int8"`` has a scale for each column and quantises activations on the
            fly; ``"int4"`` has a scale for each block of 32 weights (`com.microsoft::MatMulNBits`).
    """
    if precision == "fp32":
        return model
    make = {"int8": _int8, "int4": _int4}[precision]
    with silent():
        return ir.from_proto(make(ir.to_proto(model)))


def _int4(model: onnx.ModelProto) -> onnx.ModelProto:
    quantiser = MatMulNBitsQuantizer(
        model, bits=4, block_size=BLOCK, is_symmetric=True, accuracy_level=INT8_ACTIVATIONS
    )
    quantiser.process()
    return quantiser.model.model


def _int8(model: onnx.ModelProto) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            use_external_data_format=True,
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(path)
