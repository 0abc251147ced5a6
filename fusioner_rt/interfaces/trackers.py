"""Objects that keep an id over the frames of a video: ByteTrack, of the package trackers."""

from dataclasses import replace
from typing import Any

import numpy as np

from ..argument_checks import whole
from ..optional_packages import optional
from ..results.instances import Instance
from ..results.scene_cuts import is_cut, small_picture
from ..results.segmentation import Segmentation
from .objects import objects

_MOST = 1 << 31


class Tracker:
    """Gives the connected parts of words ids. Called with a stream's results in their order.

    An id is a number from 1, which an object keeps and no other gets, of whatever word. A part has None in the first frame that
    shows it, so that specks of single frames are not counted. Boxes of a word are matched with where its earlier ones should be
    by now. Objects of a word that touch are one part, with one id as long as they do.

    After a cut, and where the label map's size changes, all objects are new. Words may change: objects of those that are not
    asked for are gone. One thread at a time.
    """

    def __init__(self, min_area: int = 1, patience: int = 30) -> None:
        """min_area: pixels; smaller parts are left out. patience: frames that an object may be gone and keep its id.

        Raises PackageMissing without trackers, UsageError.
        """
        self._min_area = whole(min_area, "min_area", 1, _MOST, "give a number of pixels, 1 or more")
        self._patience = whole(patience, "patience", 0, _MOST, "give a number of frames, 0 or more")
        self._byte_track = optional("trackers", "trackers", "ids of objects").ByteTrackTracker
        self._detections = optional("supervision", "supervision", "ids of objects").Detections
        self._of_words: dict[str, Any] = {}
        self._ids: dict[tuple[str, int], int] = {}
        """By word and what its tracker calls the object."""
        self._last = 0
        self._before: tuple[tuple[int, ...], np.ndarray] | None = None

    def __call__(self, result: Segmentation) -> list[Instance]:
        """The frame's `result.instances(min_area)`, with ids. Raises PackageMissing without scipy, UsageError."""
        parts = [part for part in objects(result, instances=True) if part.area >= self._min_area]
        self._forget_other_scenes(result)
        for word in dict.fromkeys(part.word for part in parts):
            if word not in self._of_words:
                self._of_words[word] = self._byte_track(lost_track_buffer=self._patience)
        called: dict[int, tuple[str, int]] = {}
        for word, tracker in self._of_words.items():
            own = [number for number, part in enumerate(parts) if part.word == word]
            tracked = tracker.update(self._boxes([parts[number] for number in own]))
            if own:
                called |= {
                    own[n]: (word, name) for n, name in zip(tracked.data["n"], tracked.tracker_id.tolist(), strict=True)
                }
        for number in range(len(parts)):
            word, name = called[number]
            if name >= 0 and (word, name) not in self._ids:
                self._last += 1
                self._ids[word, name] = self._last
        given = [replace(part, id=self._ids.get(called[number])) for number, part in enumerate(parts)]
        self._of_words = {word: tracker for word, tracker in self._of_words.items() if tracker.tracks}
        living = {(word, one.tracker_id) for word, tracker in self._of_words.items() for one in tracker.tracks}
        self._ids = {key: number for key, number in self._ids.items() if key in living}
        return given

    def _forget_other_scenes(self, result: Segmentation) -> None:
        now = result.labels.shape, small_picture(result.picture)
        if self._before is None or self._before[0] != now[0] or is_cut(self._before[1], now[1]):
            self._of_words.clear()
            self._ids.clear()
        self._before = now

    def _boxes(self, parts: list[Instance]) -> Any:
        """Without confidences, which would have ByteTrack take masks that are less sure for less."""
        boxes = np.array([part.box for part in parts], np.float32).reshape(-1, 4)
        corners = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)
        return self._detections(xyxy=corners, data={"n": np.arange(len(parts))})
