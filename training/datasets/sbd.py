"""Converts SBD's masks (Hariharan et al., ICCV 2011) from MATLAB files to index PNGs. Needs scipy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fusioner_rt.atomic_files import writable_folder
from fusioner_rt.errors import one_line
from training.data import DataError, write_index_mask
from training.datasets.voc import CLASSES, PascalVoc


def convert(sbd: Path, voc: PascalVoc) -> int:
    """Writes `SegmentationClassAug/NAME.png` for each `cls/NAME.mat` and returns how many; existing masks are kept.

    sbd: the release's folder, or its `dataset`. Raises DataError.
    """
    read = _reader()
    files = next((sorted(f.glob("*.mat")) for f in (sbd / "dataset" / "cls", sbd / "cls") if f.is_dir()), [])
    if not files:
        raise DataError(
            f"{sbd} holds no dataset/cls/*.mat; expected SBD as released",
            "unpack benchmark.tgz and give --sbd benchmark_RELEASE",
        )
    out = writable_folder(voc.home / "SegmentationClassAug")
    missing = [file for file in files if not (out / f"{file.stem}.png").is_file()]
    for file in tqdm(missing, desc="SBD masks", unit="mask"):
        try:
            mask = np.asarray(read(str(file), squeeze_me=True, struct_as_record=False)["GTcls"].Segmentation)
        except Exception as error:  # scipy raises many kinds for broken files
            raise DataError(
                f"{file} cannot be read as an SBD mask ({one_line(error)}); expected a MATLAB file with GTcls.Segmentation",
                "fetch SBD again",
            ) from None
        if mask.ndim != 2 or mask.dtype.kind not in "ui" or not 0 <= mask.min() <= mask.max() < len(CLASSES):
            raise DataError(
                f"{file} holds {mask.dtype} values of shape {mask.shape}; expected indices 0 to 20, (H, W)",
                "fetch SBD again",
            )
        write_index_mask(out / f"{file.stem}.png", mask)
    return len(missing)


def _reader() -> Any:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataError("SBD's MATLAB files need scipy", "install it: pip install -c constraints.txt scipy") from None
    return loadmat
