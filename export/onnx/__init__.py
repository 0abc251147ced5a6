"""The model as ONNX graphs, and what is done to them."""
