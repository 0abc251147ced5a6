"""Frames that PyTorch holds in GPU memory: segmented there, on PyTorch's own stream, without a copy to the host.

  python examples/torch_frames.py --engine engines/demo --words "cat, sofa" docs/pictures/cat.jpg

PyTorch is this example's, not the runtime's: fusioner_rt takes and gives any array with `__cuda_array_interface__` or DLPack.
"""

import argparse

import numpy as np
import torch
from PIL import Image

import fusioner_rt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture")
    parser.add_argument("--words", default="cat, sofa")
    parser.add_argument("--engine", help="a bundle with TensorRT plans (default: as fusioner-rt segment)")
    given = parser.parse_args()

    frame = torch.from_numpy(np.array(Image.open(given.picture).convert("RGB"))).cuda()  # (H, W, 3) uint8
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with fusioner_rt.Session(given.engine) as session, torch.cuda.stream(stream):
        session.set_vocabulary(given.words)

        found = session.segment_on_device(frame, stream=stream.cuda_stream)  # returns at once
        labels = torch.from_dlpack(found.labels)  # (H, W) uint16 on the GPU, no copy
        confidence = torch.as_tensor(found.confidence, device="cuda")  # by __cuda_array_interface__, no copy either

        # Frame after frame into the same tensors, nothing is allocated:
        for _ in range(3):
            session.segment_on_device(frame, stream=stream.cuda_stream, out=(labels, confidence))
        for number, word in enumerate(found.words, 1):
            print(f"{word}: {(labels.to(torch.int32) == number).float().mean().item():.1%}")
        stream.synchronize()


if __name__ == "__main__":
    main()
