"""The PyTorch room: trains checkpoints and scores them.

python -m training.train       a recipe and a folder of pictures with masks → a checkpoint
python -m training.evaluate    a checkpoint or an engine bundle → intersection over union per class
python -m training.table       the paper's tables beside ours; trains and scores what they lack
python -m training.datasets    convert, check, prepare: a folder of one's own, PASCAL-5i, COCO-20i, FSS-1000, Mosaic-4; folds (table 6)
training.model                 Fusioner and its configuration (paper section 3)
training.checkpoint            load, save, build
training.recipe, arguments     what to train: a TOML file and command-line flags
training.encoders              frozen image and text encoders by name
training.alignment             aligns word vectors with image features before any mask is seen
training.words                 chooses the words of a training picture
training.batches               pictures and words as batches, from cached features or augmented pictures
training.feature_cache         frozen features on disk
training.augment               random views of picture and mask, without a feature cache
training.optimisation          AdamW, learning rate, mixed precision, averaged weights
training.progress              a run's state, log and learning curve
training.distributed           one process or several
training.scoring, metrics      the protocols and their scores (paper 4.1)
training.windows               sliding windows over a picture
training.scorecard, sheet      scores as JSON, CSV and tables; predictions as a picture
"""

import sys
from importlib.util import find_spec

from fusioner_rt.cures import INSTALL_TRAINING


def lacks(package: str | None) -> str:
    """What a command prints where a package is not installed."""
    return f"the Python package {package} is not installed, which training needs; {INSTALL_TRAINING}"


for _package in ("torch", "safetensors", "tqdm"):  # the runtime installs without: say so here, not deep in an import
    if find_spec(_package) is None:
        if sys.argv[:1] == ["-m"]:  # `python -m training.train`, whose module is still looked for
            raise SystemExit(f"training: {lacks(_package)}")
        raise ModuleNotFoundError(lacks(_package), name=_package)
