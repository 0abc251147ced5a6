"""TensorRT plans of a bundle's graphs: built, reported, proved."""
