"""SBD's masks (Hariharan et al., ICCV 2011) from MATLAB files to index PNGs, once. Needs scipy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from fusioner_rt.errors import one_line
from fusioner_rt.files import writable_folder, write_atomically
from training.data import DataError
from training.datasets.voc import CLASSES, PascalVoc


def convert(sbd: Path, voc: PascalVoc) -> int:
    """Writes `SegmentationClassAug/NAME.png` for each `cls/NAME.mat`; masks that are there are kept. Returns how many it wrote.

    sbd: the release's folder, or its `dataset`. Raises DataError.
    """
    read = _reader()
    files = next((sorted(f.glob("*.mat")) for f in (sbd / "dataset" / "cls", sbd / "cls") if f.is_dir()), [])
    if not files:
        raise DataError(
            f"{sbd} holds no dataset/cls/*.mat; expected SBD as released (benchmark.tgz unpacks to benchmark_RELEASE)"
        )
    out = writable_folder(voc.home / "SegmentationClassAug")
    missing = [file for file in files if not (out / f"{file.stem}.png").is_file()]
    for file in tqdm(missing, desc="SBD masks", unit="mask"):
        try:
            mask = np.asarray(read(str(file), squeeze_me=True, struct_as_record=False)["GTcls"].Segmentation)
        except Exception as error:  # scipy raises many kinds on files that are not MATLAB's, or lack the field
            raise DataError(
                f"{file} cannot be read as an SBD mask ({one_line(error)}); expected a MATLAB file with GTcls.Segmentation"
            ) from None
        if mask.ndim != 2 or mask.dtype.kind not in "ui" or not 0 <= mask.min() <= mask.max() < len(CLASSES):
            raise DataError(f"{file} holds {mask.dtype} values of shape {mask.shape}; expected indices 0 to 20, (H, W)")
        image = Image.fromarray(mask.astype(np.uint8))
        write_atomically(out / f"{file.stem}.png", lambda stream, image=image: image.save(stream, "PNG"))  # type: ignore[misc]
    return len(missing)


def _reader() -> Any:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataError("SBD's MATLAB files need scipy: pip install -c constraints.txt scipy") from None
    return loadmat
