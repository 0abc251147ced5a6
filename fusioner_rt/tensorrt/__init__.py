"""TensorRT and TensorRT-RTX: which plan loads here, and a loaded one as an engine of `fusioner_rt.gpu`."""
