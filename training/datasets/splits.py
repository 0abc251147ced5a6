"""The folds of each data set: classes held out of training, then scored (paper 6.1, table 6, after LSeg).

A fold lists its novel classes; its model trains on the data set's other classes.
"""

from __future__ import annotations

from training.data import DataError, PictureMasks

FOLDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "pascal-5i": (
        ("aeroplane", "bicycle", "bird", "boat", "bottle"),
        ("bus", "car", "cat", "chair", "cow"),
        ("diningtable", "dog", "horse", "motorbike", "person"),
        ("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    ),
    # COCO's own spelling; the paper writes these as VOC does where VOC has them, and without spaces.
    "coco-20i": (
        (
            "person", "airplane", "boat", "parking meter", "dog", "elephant", "backpack", "suitcase", "sports ball",
            "skateboard", "wine glass", "spoon", "sandwich", "hot dog", "chair", "dining table", "mouse", "microwave",
            "refrigerator", "scissors",
        ),
        (
            "bicycle", "bus", "traffic light", "bench", "horse", "bear", "umbrella", "frisbee", "kite", "surfboard",
            "cup", "bowl", "orange", "pizza", "couch", "toilet", "remote", "oven", "book", "teddy bear",
        ),
        (
            "car", "train", "fire hydrant", "bird", "sheep", "zebra", "handbag", "skis", "baseball bat",
            "tennis racket", "fork", "banana", "broccoli", "donut", "potted plant", "tv", "keyboard", "toaster",
            "clock", "hair drier",
        ),
        (
            "motorcycle", "truck", "stop sign", "cat", "cow", "giraffe", "tie", "snowboard", "baseball glove",
            "bottle", "knife", "apple", "carrot", "cake", "bed", "laptop", "cell phone", "sink", "vase", "toothbrush",
        ),
    ),
    # Trained on fold i of coco-20i, scored on VOC: the VOC classes that fold i has not seen.
    "coco-20i-to-voc": (
        ("aeroplane", "boat", "chair", "diningtable", "dog", "person"),
        ("bicycle", "bus", "horse", "sofa"),
        ("bird", "car", "pottedplant", "sheep", "train", "tvmonitor"),
        ("bottle", "cat", "cow", "motorbike"),
    ),
}  # fmt: skip


def held_out(split: str, fold: int) -> tuple[str, ...]:
    """The classes of a fold, as the scored data set spells them. Raises DataError."""
    if split not in FOLDS:
        raise DataError(f"there is no split {split!r}; expected one of {', '.join(FOLDS)}")
    folds = FOLDS[split]
    if type(fold) is not int or not 0 <= fold < len(folds):
        raise DataError(f"{split} has no fold {fold!r}; expected a number from 0 to {len(folds) - 1}")
    return folds[fold]


def held_out_indices(data: PictureMasks, split: str, fold: int) -> list[int]:
    """Indices of the fold's classes in this data set, in the fold's order. Classes that it lacks are left out.

    Raises DataError where it has none of them.
    """
    classes, found = held_out(split, fold), []
    for name in classes:
        try:
            found.append(data.index(name))
        except DataError:
            continue
    if not found:
        raise DataError(
            f"{data.root} has no class of {split}'s fold {fold} ({', '.join(classes)})",
            "give a split that fits the data set",
        )
    return found
