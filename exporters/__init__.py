"""From a trained run to a bundle on disk: ONNX graphs, parity, assembly."""
