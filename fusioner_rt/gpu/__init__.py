"""The GPU runtime without torch: memory, kernels, and the pipeline around an engine."""
