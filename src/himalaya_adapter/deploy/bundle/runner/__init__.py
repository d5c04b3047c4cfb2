"""Runs a bundle's graphs with numpy and ONNX Runtime alone; it is copied into every bundle."""
