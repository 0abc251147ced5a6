"""TensorRT and TensorRT-RTX: the choice of a plan, and a loaded plan as an engine of `fusioner_rt.gpu`."""
