"""Frames that PyCUDA holds in GPU memory: segmented there, on PyCUDA's own stream, without a copy to the host.

  python examples/pycuda_frames.py --engine engines/demo --words "cat, sofa" docs/pictures/cat.jpg

PyCUDA makes a context of its own unless told to share the GPU's primary one, where TensorRT and fusioner_rt work: hence
`pycuda.autoprimaryctx` and not `pycuda.autoinit`.
"""

import argparse

import numpy as np
import pycuda.autoprimaryctx
import pycuda.driver as cuda
from PIL import Image
from pycuda import gpuarray

import fusioner_rt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture")
    parser.add_argument("--words", default="cat, sofa")
    parser.add_argument("--engine", help="a bundle with TensorRT plans (default: as fusioner-rt segment)")
    given = parser.parse_args()

    picture = np.array(Image.open(given.picture).convert("RGB"))
    stream = cuda.Stream()
    with fusioner_rt.Session(given.engine) as session:
        session.set_vocabulary(given.words)
        frame = gpuarray.to_gpu_async(picture, stream=stream)  # (H, W, 3) uint8
        labels = gpuarray.empty(picture.shape[:2], np.uint16)
        confidence = gpuarray.empty(picture.shape[:2], np.float32)

        # Frame after frame into the same arrays, nothing is allocated; each call returns at once:
        for _ in range(3):
            session.segment_on_device(frame, stream=stream.handle, out=(labels, confidence))
        on_host = labels.get_async(stream=stream)
        stream.synchronize()
        for number, word in enumerate(session.words, 1):
            print(f"{word}: {(on_host == number).mean():.1%}")
        del frame, labels, confidence  # before PyCUDA's context goes


if __name__ == "__main__":
    assert pycuda.autoprimaryctx.context  # made at import
    main()
