"""The GPU runtime without torch: memory, kernels, and the pipeline around an engine.

executor             the backends of GPUs
pipeline             pictures to labels for one combination of shapes; pipeline_pool.py keeps several
cuda_graph           work recorded once and launched as a whole
engine_interface     what an engine for image_fusion must do; onnxruntime_engine.py is one, TensorRT's is in tensorrt/
device_segmentation  `Session.segment_on_device`; foreign_arrays.py exchanges arrays with other libraries
driver               the CUDA driver, with every return code checked; memory_pool.py reuses memory
kernel_launcher      the bundle's compiled kernels; kernel_contract.py is what they and the launchers agree on
mask_head            launches the mask head; argument_checks.py looks at its arrays first
preprocess           launches Pillow's resize, by the tables of resize_tables.py, and the normalisation
"""
