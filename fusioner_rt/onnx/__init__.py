"""The bundle's ONNX graphs in ONNX Runtime, and decoder and mask head on a CPU.

executor           the backends that ONNX Runtime runs as a whole
runtime            loads and runs one graph, without a silent fallback
loaded_graphs      the bundle's graphs by name
external_weights   the weights that a graph keeps in another file, found and given to ONNX Runtime as arrays
decoder_in_strips  the Winograd decoder, strip by strip in the processor's cache
mask_head          low-resolution maps to labels and probabilities; labels by mask_tiles.py
workers            threads that share a call's work
cpu_fallback       what a backend on a GPU leaves to the CPU
"""
