"""Checkpoint to engine bundle.

build_engine     the command: build, prove, write whole or not at all
graphs           the model as ONNX: prompts to vectors, picture and words to features
mask_head_graph  the mask head as ONNX: features and words to masks of any size
precision        float16 or bfloat16 that lives in the graph, and its proof
gates            what a bundle must prove before it is written
tensorrt_engine  plans for TensorRT and TensorRT-RTX; beside it their profiles, progress, report, and the matrix of
                 models, precisions and GPUs that they are shown to build for
"""
