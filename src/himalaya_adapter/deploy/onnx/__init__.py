"""An adapter as ONNX graphs that stock ONNX Runtime runs (docs/deployment.md)."""

from .export import export_onnx

__all__ = ["export_onnx"]
