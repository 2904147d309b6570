"""Class names: those of files that state none, and the matching of a file's classes with a model's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["COCO", "IMAGENET_HEADS", "match_classes", "published_classes"]

#: COCO's 80 categories by id, as numbered in published checkpoints.
COCO: tuple[str, ...] = tuple(
    (  # noqa: SIM905 - eighty quoted names say no more
        "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
        "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
        "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
        "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
        "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
        "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
    ).split(",")
)

#: Training data of backbone classifiers, by number of classes.
IMAGENET_HEADS = {1000: "ImageNet-1k", 11821: "ImageNet-12k", 21841: "ImageNet-22k"}


def published_classes(count: int | None) -> list[str] | None:
    """Return the class names of a detector of ``count`` classes that states none; None if unknown."""
    return list(COCO) if count == len(COCO) else None


# Names of COCO's classes in Pascal VOC, and in configurations of some published COCO detectors.
_SAME = {"aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv"}


def match_classes(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """Return the pairs (index in ``new``, index in ``old``) of the same class, ordered by ``new``.

    Names are first compared exactly; the rest without regard to case, spaces, hyphens and underscores, and with VOC's names
    for COCO's classes, if that is unambiguous. Repeated names are matched in order.
    """
    free = dict(enumerate(old))
    pairs: dict[int, int] = {}
    for index, name in enumerate(new):
        found = next((place for place, other in free.items() if other == name), None)
        if found is not None:
            pairs[index] = found
            del free[found]
    theirs = {place: _plain(name) for place, name in free.items()}
    ours = {index: _plain(name) for index, name in enumerate(new) if index not in pairs}
    counts = Counter(theirs.values()), Counter(ours.values())
    places = {name: place for place, name in theirs.items() if counts[0][name] == 1}
    pairs |= {index: places[name] for index, name in ours.items() if name in places and counts[1][name] == 1}
    return sorted(pairs.items())


def _plain(name: str) -> str:
    letters = re.sub(r"[\s_-]+", "", name.casefold())
    return _SAME.get(letters, letters)
