"""An adapter as ONNX graphs that stock ONNX Runtime runs (docs/deployment.md)."""

from himalaya_adapter.errors import HimalayaError

try:
    import onnx as _onnx  # noqa: F401
    import onnxruntime as _onnxruntime  # noqa: F401
    import onnxscript as _onnxscript  # noqa: F401
except ModuleNotFoundError as error:
    raise HimalayaError(f"{error.name} is missing: pip install 'himalaya-adapter[deploy]'") from error

from .export import export_onnx

__all__ = ["export_onnx"]
