"""An adapter as ONNX graphs that stock ONNX Runtime runs (docs/deployment.md)."""
