"""Frames that CuPy holds in GPU memory: segmented there, on CuPy's own stream, without a copy to the host.

python examples/cupy_frames.py --engine engines/demo --words "cat, sofa" docs/pictures/cat.jpg
"""

import argparse

import cupy
import numpy as np
from PIL import Image

import fusioner_rt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture")
    parser.add_argument("--words", default="cat, sofa")
    parser.add_argument("--engine", help="a bundle with TensorRT plans (default: as fusioner-rt segment)")
    given = parser.parse_args()

    with fusioner_rt.Session(given.engine) as session, cupy.cuda.Stream(non_blocking=True) as stream:
        session.set_vocabulary(given.words)
        frame = cupy.asarray(np.array(Image.open(given.picture).convert("RGB")))  # (H, W, 3) uint8

        found = session.segment_on_device(frame, stream=stream.ptr)  # returns at once
        labels, confidence = cupy.asarray(found.labels), cupy.asarray(found.confidence)  # no copy

        # Frame after frame into the same arrays, nothing is allocated:
        for _ in range(3):
            session.segment_on_device(frame, stream=stream.ptr, out=(labels, confidence))
        for number, word in enumerate(found.words, 1):
            print(f"{word}: {float((labels == number).mean()):.1%}")
        stream.synchronize()


if __name__ == "__main__":
    main()
