"""Videos, cameras and streams, by PyAV (extra `video`): their frames for `Session.stream`, and overlays as a video.

    from fusioner_rt import Session, video
    with Session() as session, video.frames("clip.mp4") as clip, video.OverlayWriter("seen.mp4", clip) as seen_video:
        for seen in session.stream(clip, "cat, sofa"):
            if seen.result:
                seen_video.write(seen.result.overlay(legend=False), clip.time(seen.index))

frames         opens a file, a camera or a URL; what it gives is the iterable for `Session.stream`
Frames         what `frames` gives: pictures upright, and the time of each
OverlayWriter  writes pictures as a video with those times, and the sound of the source
is_video       whether a path or URL names a video, by its content, ending or scheme
"""

from .frames import Frames, frames
from .overlay_writer import OverlayWriter
from .sources import is_video

__all__ = ["Frames", "OverlayWriter", "frames", "is_video"]
