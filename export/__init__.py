"""Checkpoint to engine bundle.

build_engine       the command: build, prove, write whole or not at all
build_bundle       a build's stages: prepare, export, prove, write
add_plans          TensorRT plans into a bundle that is there
gates              what a bundle must prove before it is written
make_known_answer  what every backend is compared with when it is opened
compile_kernels    the GPU kernels of a bundle
onnx/              the model as ONNX graphs: for any backend, for CPUs, in half precision
tensorrt/          plans for TensorRT and TensorRT-RTX: profiles, progress, report, proof
"""

import fusioner_rt  # noqa: F401  # before any import of onnxruntime: it turns off its telemetry
