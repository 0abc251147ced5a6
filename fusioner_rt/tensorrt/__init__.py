"""TensorRT and TensorRT-RTX as a backend.

preflight      which of the bundle's plans loads on this machine, told before anything is loaded
open_plans     opens them on a GPU
loaded_plan    a loaded plan as an engine of `fusioner_rt.gpu`
versions       every call that differs between the libraries and their versions
runtime_cache  what TensorRT-RTX compiled, kept between processes
"""
