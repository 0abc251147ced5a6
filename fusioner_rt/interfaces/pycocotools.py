"""pycocotools both ways: results as a `COCO`, and annotations of one as a `Segmentation`."""

import contextlib
import io
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..decode_picture import Picture, decode
from ..errors import UsageError, one_line
from ..optional_packages import optional
from ..results.coco_document import to_coco
from ..results.segmentation import STAGES, Segmentation

if TYPE_CHECKING:
    from pycocotools.coco import COCO

_PURPOSE = "indices of COCO files"


def to_index(results: Iterable[Segmentation], instances: bool = False) -> "COCO":
    """A `pycocotools.coco.COCO` of results, as if read from the file that `fusioner_rt.to_coco` makes.

    Its images are numbered from 1 in the order of the results. Raises PackageMissing, UsageError.
    """
    return _open(to_coco(results, instances=instances))


def from_coco(
    coco: "COCO | Mapping[str, Any] | str | os.PathLike[str]", image_id: int, picture: Picture | None = None
) -> Segmentation:
    """The annotations of one image as a Segmentation.

    coco: a `COCO`, the content of a COCO file, or its path. picture: the image, black by default.
    Words are all categories, by their ids. Annotations without a segmentation are left out. Where annotations overlap, the smaller lies above the larger. The confidence is an
    annotation's score, 1 without one, and 0 where nothing is annotated. Raises PackageMissing, UsageError, and the errors of
    pictures.
    """
    index: Any = coco if hasattr(coco, "annToMask") else _open(coco)
    if image_id not in index.imgs:
        known = ", ".join(map(str, list(index.imgs)[:10])) or "none"
        raise UsageError(f"there is no image {image_id!r}", f"take one of its {len(index.imgs)} images: {known}")
    image = index.imgs[image_id]
    size = image["height"], image["width"]
    categories = sorted(index.cats)
    labels, confidence = np.zeros(size, np.uint16), np.zeros(size, np.float32)
    annotations = [one for one in index.loadAnns(index.getAnnIds(imgIds=[image_id])) if one.get("segmentation")]
    masks = optional("pycocotools.mask", "pycocotools", _PURPOSE)
    for one in sorted(annotations, key=lambda one: -int(masks.area(index.annToRLE(one)))):
        mask = index.annToMask(one).astype(bool)
        if mask.shape != size or one["category_id"] not in index.cats:
            raise UsageError(
                f"annotation {one['id']} has category {one['category_id']} and {mask.shape[1]}x{mask.shape[0]} pixels; its file "
                f"has categories {categories}, its image {size[1]}x{size[0]} pixels",
                "export the file again",
            )
        labels[mask] = categories.index(one["category_id"]) + 1
        confidence[mask] = one.get("score", 1.0)
    return Segmentation(
        words=tuple(index.cats[number]["name"] for number in categories),
        labels=labels,
        confidence=confidence,
        picture=np.zeros((*size, 3), np.uint8) if picture is None else decode(picture),
        timing=dict.fromkeys(STAGES, 0.0),
        threshold=0.0,
        mode="joint",
        source=image.get("file_name"),
    )


def _open(content: Any) -> Any:
    """A `COCO` of a file or of its content. pycocotools prints what it does; that is held back."""
    module = optional("pycocotools.coco", "pycocotools", _PURPOSE)
    with contextlib.redirect_stdout(io.StringIO()):
        if not isinstance(content, Mapping):
            try:
                return module.COCO(os.fspath(content))
            except (OSError, TypeError, ValueError, KeyError, AssertionError) as error:
                raise UsageError(
                    f"the annotations cannot be read ({one_line(error)})", "give a COCO file, its content, or a COCO"
                ) from None
        index = module.COCO()
        index.dataset = content
        index.createIndex()
    return index
