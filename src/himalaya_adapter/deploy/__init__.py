"""What a finished adapter becomes: text, a release, an ONNX graph, a bundle for another machine, a LoRA."""
