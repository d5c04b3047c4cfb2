"""A self-contained folder for another machine: graphs, weights, a runner that needs numpy and ONNX Runtime alone."""
