"""What tests that need a GPU ask of the one that is here."""

import torch

from kernels.variants import TARGETS


def target() -> int:
    """What kernels are compiled for to run here: the GPU's own capability, or that whose PTX it takes."""
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor if 10 * major + minor in TARGETS else 80
