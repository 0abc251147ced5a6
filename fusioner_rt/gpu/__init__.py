"""An NVIDIA GPU without torch: memory, kernels, and the pipeline around an engine, whichever that is."""
