"""Videos and animations among sources: each gives way to its frames."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path

from nextdetr.errors import DataError
from nextdetr.inference.moving import Video
from nextdetr.inference.sources import SourceItem
from nextdetr.inference.tags import VideoTags
from nextdetr.pictures import Encoded, count_frames, open_in_memory, open_picture
from nextdetr.preprocess import AS_EVER, Reading, to_rgb

__all__ = ["frames_of", "unfold"]

_ANIMATED = (".gif", ".webp")
_STILL = 0.1  # seconds that a frame without a time of its own is shown, as browsers do


def unfold(items: Iterable[SourceItem], *, animations: bool = True, reading: Reading = AS_EVER) -> Iterator[SourceItem]:
    """Put the frames of each video, and of each animated GIF or WebP, in its place, decoded as they are asked for.

    Args:
        items: images and videos.
        animations: whether animations are taken for videos; else their first frame is an image.
        reading: how files are read.
    """
    for item in items:
        if isinstance(item.image, Video) or (animations and _moves(item)):
            with closing(frames_of(item, reading)) as frames:
                yield from frames
        else:
            yield item


def frames_of(item: SourceItem, reading: Reading = AS_EVER) -> Generator[SourceItem]:
    """Yield the frames of a video or an animation; what cannot be opened is one item that says why."""
    if not isinstance(item.image, Video):
        yield from _animation(item, reading)
        return
    from nextdetr.inference.video import read_frames

    frames = read_frames(item.image)
    try:
        for frame in frames:
            yield SourceItem(item.path, frame.pixels, frame.index, frame.seconds, frame.live, tags=frame.tags)
    except DataError as error:
        yield SourceItem(item.path, item.image, problem=str(error))
    finally:
        frames.close()


def _moves(item: SourceItem) -> bool:
    source = item.image
    if isinstance(source, str | Path):
        return Path(source).suffix.lower() in _ANIMATED and count_frames(Path(source)) > 1
    if not isinstance(source, Encoded):
        return False
    signed = source.content[:4] == b"GIF8" or source.content[8:12] == b"WEBP"
    return signed and count_frames(source) > 1


def _animation(item: SourceItem, reading: Reading) -> Generator[SourceItem]:
    """Yield the frames as they are shown, on white where they are transparent; a damaged one ends the animation."""
    source = item.image
    assert isinstance(source, str | Path | Encoded)
    limit, seconds, number = reading.max_pixels, 0.0, 0
    file = source if isinstance(source, Encoded) else None
    try:
        with open_in_memory(source, limit) if isinstance(source, Encoded) else open_picture(Path(source), limit) as image:
            count = int(getattr(image, "n_frames", 1))
            for number in range(count):
                image.seek(number)
                image.load()
                picture = to_rgb(image.copy())
                lasts = float(image.info.get("duration", 0)) / 1000 or _STILL
                tags = VideoTags(1 / lasts, frames=count)
                yield SourceItem(item.path, picture, number, seconds, tags=tags, file=file)
                seconds += lasts
    except DataError as error:
        yield SourceItem(item.path, source, problem=str(error))
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise nearly everything on damaged files
        reason = (str(error) or type(error).__name__).rstrip(". ")
        yield SourceItem(item.path, source, problem=f"{item.path}: frame {number} cannot be read: {reason}.")
