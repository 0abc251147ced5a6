"""The resize kernels give the bits of `Preprocessing`. Run by test_resize.py in a process of its own: on a GPU where
there is one, else by Triton's interpreter, which is chosen when Triton is imported.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fusioner_rt.gpu.preprocess import CudaPreprocess
from fusioner_rt.preprocess import RESAMPLINGS, Preprocessing
from kernels.variants import variant

# interpreted, a case takes a second, and shrinking one that fails would take many minutes
settings.register_profile("laws", deadline=None, phases=(Phase.explicit, Phase.generate))
settings.load_profile("laws")
DIVISOR = int(os.environ.get("LAWS_DIVISOR", "1"))  # of drawn examples: interpreted kernels take seconds each

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PICTURES = Path(__file__).parents[2] / "docs/pictures"
NO_DEVICE = SimpleNamespace()  # planning launches nothing


def by_kernels(pictures, size, preprocessing, rows=4, values=256):
    """(B, H, W, 3) uint8 to (B, 3, h, w) float32, with tiles of rows × values."""
    plan = CudaPreprocess(NO_DEVICE, preprocessing).plan(*pictures.shape[1:3], size)
    tables = torch.from_numpy(plan.tables).to(DEVICE)
    scale = [float(value) for values in preprocessing.gain_and_shift() for value in values]
    current = torch.tensor(pictures, device=DEVICE)
    for one in plan.passes:
        chosen = variant(one.kernel, 80)
        planes = chosen.constants["PLANES"]
        shape = (len(pictures), 3, *one.after) if planes else (len(pictures), *one.after, 3)
        out = torch.full(shape, 77, dtype=torch.float32 if planes else torch.uint8, device=DEVICE)
        grid = (-(-one.after[0] // rows) * -(-3 * one.after[1] // values), len(pictures))
        chosen.kernel[grid](
            current, tables[one.first // 4 :], tables[one.weights // 4 :], out, *scale, *one.before,
            one.after[one.axis], one.taps, **chosen.constants, ROWS=rows, VALUES=values, enable_fp_fusion=chosen.fused,
        )  # fmt: skip
        current = out
    return current.cpu().numpy()


def on_the_cpu(pictures, size, preprocessing):
    return np.stack([preprocessing(picture, size) for picture in pictures])


edges = st.one_of(st.integers(1, 9), st.integers(1, 90))
means = st.floats(-1, 2)
scales = st.floats(0.05, 3)


@given(
    seed=st.integers(0, 2**32 - 1),
    pictures=st.integers(1, 3),
    before=st.tuples(edges, edges),
    after=st.tuples(edges, edges),
    same=st.sampled_from([None, None, None, 0, 1, 2]),
    resample=st.sampled_from(RESAMPLINGS),
    mean=st.tuples(means, means, means),
    std=st.tuples(scales, scales, scales),
    two_levels=st.booleans(),
)
@example(0, 2, (5, 123), (37, 87), None, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), True)
@example(0, 1, (400, 3), (7, 5), None, "lanczos", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), True)  # the columns first
@example(0, 1, (3, 400), (5, 7), None, "lanczos", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), True)
@example(0, 2, (1, 1), (1, 1), None, "hamming", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), False)
@example(0, 1, (1, 1), (9, 100), None, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), False)
@settings(max_examples=-(-25 // DIVISOR))
def test_preprocessing_by_kernels_is_that_of_the_cpu_bit_for_bit(
    seed, pictures, before, after, same, resample, mean, std, two_levels
):
    """Edges of every kind; black and white pixels make the filters overshoot both ends of the levels."""
    if same is not None:
        after = (before[0] if same in (0, 2) else after[0], before[1] if same in (1, 2) else after[1])
    random = np.random.default_rng(seed)
    given_pictures = random.integers(0, 256, (pictures, *before, 3), np.uint8)
    if two_levels:
        given_pictures = np.where(given_pictures > 127, 255, 0).astype(np.uint8)
    preprocessing = Preprocessing(320, 1, 1024, resample, mean, std)
    found = by_kernels(given_pictures, after, preprocessing)
    np.testing.assert_array_equal(found, on_the_cpu(given_pictures, after, preprocessing))


@pytest.mark.parametrize(
    ("name", "resample"),
    [
        ("cat.jpg", "bicubic"),
        *(pytest.param("cat.jpg", each, marks=pytest.mark.slow) for each in RESAMPLINGS if each != "bicubic"),
        pytest.param("coffee.jpg", "bicubic", marks=pytest.mark.slow),
        pytest.param("astronaut.jpg", "bicubic", marks=pytest.mark.slow),
    ],
)
def test_real_pictures_become_the_network_s_input_bit_for_bit(name, resample):
    with Image.open(PICTURES / name) as image:
        rgb = np.asarray(image.convert("RGB"))
    preprocessing = Preprocessing(320, 32, 1024, resample, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    size = preprocessing.input_size(*rgb.shape[:2])
    # few, large tiles: the interpreter takes one program after another
    found = by_kernels(rgb[None], None, preprocessing, 64, 1024)
    np.testing.assert_array_equal(found[0], preprocessing(rgb, size))
