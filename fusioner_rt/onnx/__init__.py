"""The bundle's ONNX graphs in ONNX Runtime, and decoder and mask head on a CPU."""
