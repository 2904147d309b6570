"""Videos among sources: each gives way to its frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nextdetr.errors import DataError
from nextdetr.inference.sources import SourceItem, Video

__all__ = ["unfold"]


def unfold(items: Iterable[SourceItem]) -> Iterator[SourceItem]:
    """Put the frames of each video in its place, decoded as they are asked for."""
    for item in items:
        if not isinstance(item.image, Video):
            yield item
            continue
        from nextdetr.inference.video import read_frames

        frames = read_frames(item.image)
        try:
            for frame in frames:
                yield SourceItem(item.path, frame.pixels, frame.index, frame.seconds, item.image.live, tags=frame.tags)
        except DataError as error:
            yield SourceItem(item.path, item.image, problem=str(error))
        finally:
            frames.close()
