"""Ray Data: masks of a dataset's pictures, by a pool of actors."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..argument_checks import choice, flag, named, whole
from ..bundle import Bundle, find_bundle, read_manifest
from ..bundle_places import named_bundles
from ..errors import UsageError
from ..executor_interface import Mode
from ..optional_packages import optional
from ..pixel_arrays import Channels
from ..words.owners import Thresholds
from ..words.parse import Words, check_count, parse_words

if TYPE_CHECKING:
    from ..session import Window

_MOST = 100_000  # actors
_IN_FLIGHT = 2  # blocks an actor: one that it works on, one that waits


def segment(
    dataset: Any,
    bundle: str | os.PathLike[str] | None,
    words: Words,
    *,
    background: Words | None = None,
    threshold: float | Mapping[str, float] | Literal["default"] = "default",
    mode: Mode = "joint",
    window: "Window" = "whole",
    size: tuple[int, int] | None = None,
    picture: str | None = None,
    filesystem: Any = None,
    channels: Channels = "rgb",
    labels: bool = False,
    backend: str = "auto",
    input_size: int | None = None,
    max_pixels: int | None = None,
    cache: str | os.PathLike[str] | Literal[False] | None = None,
    actors: int | None = None,
    threads: int = 1,
    gpus: float | None = None,
) -> Any:
    """Masks of the pictures of a `ray.data.Dataset`, which is run when the result is.

        pictures = ray.data.read_binary_files("s3://bucket/photos", include_paths=True)
        fusioner_rt.ray.segment(pictures, "demo", "cat, sofa").write_parquet("s3://bucket/masks")

    picture: the column of pictures: files' bytes, pixels as `Session.segment` takes them, or paths. By default the first of
        bytes, image and path that there is.
    filesystem: of pyarrow, that the paths are in; by default they are of each machine's own files.
    bundle: as for `Session`, on each machine of the cluster at the same path, or installed there under the same name.
    words, background, threshold, mode, window, size, channels: as for `Session.segment`.
    backend, input_size, max_pixels, cache: as for `Session`.
    labels: also give each label map, as a PNG.
    actors: sessions, each in a process. By default one for each `threads` cores that the cluster has now, or for each GPU.
    threads: CPU threads of each; other numbers of them give other roundings (docs/cpu.md).
    gpus: of each actor, by default 1 where the cluster has any and `backend` takes one, else 0.

    Returns a dataset with a row for each of the given one. Its columns stay, but for pictures, and these are added:
        size    list of two int32: H, W of the label map
        words   list of K strings, as asked for; of a group its first
        scores  list of K float32: mean probability over the word's pixels, 0 for a word without pixels
        shares  list of K float64: of the pixels, 0..1
        boxes   list of K lists of four int32: x, y, width, height in pixels, 0 for a word without pixels
        rle     list of K strings: masks as COCO's compressed run lengths
        labels  bytes of a grey PNG, value n = words[n - 1]; with labels=True
        code    int32: 0, or the error's code (docs/operating.md)
        error   string: null, or one line of what was found and what to do
    The columns before `code` are null where a picture failed: pictures end no run. Errors of words, bundles and arguments do.
    Raises PackageMissing without Ray, UsageError, WordsInvalid, TooManyWords, and the errors of a bundle.
    """
    data = optional("ray.data", "ray[data]", "datasets", "'fusioner-rt[ray]'")
    from .segmenter import Segmenter, digest_of

    if not isinstance(dataset, data.Dataset):
        raise UsageError(f"a dataset was given as {type(dataset).__name__}", "give one of ray.data")
    threads = whole(threads, "threads", 1, 1024, "give 1 to 1024")
    choice(mode, "mode", ("joint", "independent"))
    folder = find_bundle(bundle)
    manifest = Bundle.of(folder, read_manifest(folder))
    words = list(words) if isinstance(words, Iterator) else words  # which each actor reads
    background = list(background) if isinstance(background, Iterator) else background
    asked = parse_words(words, background)
    check_count(asked, manifest.words.max, folder)
    Thresholds(threshold, asked, manifest.threshold)
    session = {
        "bundle": next((name for name, one in named_bundles().items() if one.folder == folder), str(folder.absolute())),
        "backend": backend, "input_size": input_size, "max_pixels": max_pixels, "channels": channels, "threads": threads,
        "cache": cache if cache is None or cache is False else os.path.abspath(cache),
    }  # fmt: skip
    machines = [node["Resources"] for node in optional("ray", "ray[data]", "datasets").nodes() if node["Alive"]]
    pool = actor_pool(
        [(machine.get("CPU", 0), machine.get("GPU", 0)) for machine in machines],
        actors, threads, 0 if backend == "onnxruntime-cpu" and gpus is None else gpus,
    )  # fmt: skip
    masks = dataset.map_batches(
        Segmenter,
        batch_format="pyarrow",
        batch_size=None,  # a block, as it lies in the object store
        zero_copy_batch=True,
        compute=data.ActorPoolStrategy(size=pool.actors, max_tasks_in_flight_per_actor=_IN_FLIGHT),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        fn_constructor_kwargs={
            "session": session,
            "digest": digest_of(folder),
            "words": words,
            "background": background,
            "call": {"threshold": threshold, "mode": mode, "window": window, "size": size},
            "picture": picture,
            "filesystem": filesystem,
            "labels": flag(labels, "labels"),
        },
    )
    masks.context.raise_original_map_exception = True  # wrapped, an error's kind is lost on its way from the actor
    return masks


class Pool(NamedTuple):
    """actors: how many. cpus, gpus: that Ray reserves for each."""

    actors: int
    cpus: float
    gpus: float


def actor_pool(machines: Sequence[tuple[float, float]], actors: int | None, threads: int, gpus: float | None) -> Pool:
    """The actors that a cluster has room for. machines: cores and GPUs of each. The others as for `segment`. Raises UsageError.

    Some machine keeps a whole core for Ray's other tasks, by the count that it reserves by: where actors hold all of them, tasks
    that read the pictures never start, and the run waits for ever.
    """
    if gpus is None:
        gpus = int(any(count for _, count in machines))
    if isinstance(gpus, bool) or not isinstance(gpus, (int, float)) or not 0 <= gpus <= 64:
        raise UsageError(
            named("gpus", gpus), "give how many GPUs each actor has: 0 for none, 0.5 for two actors on one"
        )
    places = [
        (cores, int(count / gpus) if gpus else max(1, int(cores // threads))) for cores, count in machines if cores
    ]
    places = [(cores, slots) for cores, slots in places if slots]
    if not places:
        raise UsageError(
            "no machine of the cluster has cores and GPUs enough for an actor", "ask for fewer of them, or add machines"
        )
    if actors is None:
        actors = sum(slots for _, slots in places)
    else:
        actors = whole(actors, "actors", 1, _MOST, "give 1 or more, or leave it out for one per core or GPU")
    least = math.ceil(actors / len(places))
    room = min(max(0, cores - 1) / max(slots, least) for cores, slots in places)
    # Ray reserves whole cores, or ten-thousandths of one.
    return Pool(actors, min(threads, math.floor(room) or math.floor(room * 10_000) / 10_000), gpus)
