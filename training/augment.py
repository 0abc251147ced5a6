"""Random augmentation of a picture and its mask, without a feature cache: crop, scale, flip, affine, colour, noise.

The operations are torchvision's (transforms.v2). Random draws depend only on the given generator.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from training.data import IGNORE


@dataclass(frozen=True)
class Strengths:
    """The strength of each operation; a neutral value turns it off."""

    crop: tuple[float, float] = (0.25, 1.0)  # fraction of the picture's area that is kept
    stretch: float = 4 / 3  # largest change of the crop's aspect ratio, either way; 1 = as the network input
    flip: float = 0.5  # probability of mirroring
    degrees: float = 10.0  # of rotation, either way
    shear: float = 5.0  # degrees, either way
    zoom: tuple[float, float] = (0.8, 1.25)  # scale of the picture before the crop
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    noise: float = 0.03  # largest standard deviation, as a fraction of 255


def augment(
    rgb: np.ndarray,
    mask: np.ndarray,
    size: tuple[int, int],
    random: np.random.Generator,
    strengths: Strengths = Strengths(),
) -> tuple[np.ndarray, np.ndarray]:
    """rgb (H, W, 3) uint8 and mask (H, W) int16 → the same at exactly `size` (height, width).

    Pixels from outside the picture are grey and labelled IGNORE; labels are never interpolated. One draw of `random`
    decides everything; torch's generator is left unchanged. Raises ValueError where the sizes of rgb and mask differ.
    """
    if rgb.shape[:2] != mask.shape:
        raise ValueError(f"the mask is {mask.shape}, the picture {rgb.shape}; expected the same height and width")
    v2, functional, tv_tensors = _torchvision()
    image = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1))
    # float32 holds every int16 exactly; the affine operation computes in it anyway.
    labels = tv_tensors.Mask(torch.from_numpy(mask.astype(np.float32))[None])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(random.integers(2**63)))  # torch.manual_seed would also seed GPUs
        image, labels = _geometry(v2, functional, tv_tensors, size, strengths)(image, labels)
        image = _colour(v2, strengths)(image)
        if strengths.noise:
            sigma = float(torch.rand(())) * strengths.noise
            image = functional.gaussian_noise(image, sigma=sigma)
    return (
        np.ascontiguousarray(image.permute(1, 2, 0).numpy()),
        np.ascontiguousarray(labels[0].numpy().astype(np.int16)),
    )


def _geometry(v2: Any, functional: Any, tv_tensors: Any, size: tuple[int, int], strengths: Strengths) -> Any:
    steps: list[Any] = [v2.RandomHorizontalFlip(strengths.flip)]
    if strengths.degrees or strengths.shear or strengths.zoom != (1.0, 1.0):
        steps.append(
            v2.RandomAffine(
                strengths.degrees,
                scale=strengths.zoom,
                shear=strengths.shear or None,
                interpolation=v2.InterpolationMode.BILINEAR,
                fill={tv_tensors.Image: 127, tv_tensors.Mask: IGNORE},
            )
        )

    def crop(image: Any, labels: Any) -> tuple[Any, Any]:
        """RandomResizedCrop, but with labels at the new pixels' centres: its own are half a pixel off."""
        aspect = size[1] / size[0]
        ratio = (aspect / strengths.stretch, aspect * strengths.stretch)
        place = v2.RandomResizedCrop(size, strengths.crop, ratio).make_params([image])
        # In a picture one pixel high or wide, a crop of another aspect can round to 0.
        box = (place["top"], place["left"], max(1, place["height"]), max(1, place["width"]))
        exact = v2.InterpolationMode.NEAREST_EXACT
        return (
            functional.resize(functional.crop(image, *box), list(size), antialias=True),
            tv_tensors.wrap(
                functional.resize_image(functional.crop(labels, *box).as_subclass(torch.Tensor), list(size), exact),
                like=labels,
            ),
        )

    return lambda image, labels: crop(*v2.Compose(steps)(image, labels))


def _colour(v2: Any, strengths: Strengths) -> Any:
    return v2.ColorJitter(strengths.brightness, strengths.contrast, strengths.saturation, strengths.hue)


@functools.cache
def _torchvision() -> tuple[Any, Any, Any]:
    """transforms.v2, its functional, and tv_tensors; imported on use, which takes seconds."""
    from training.encoders.open_clip import define_torchvision_operators

    define_torchvision_operators()
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    return v2, v2.functional, tv_tensors
