"""Class names of files that do not state them: published detectors of 80 classes are COCO's."""

from __future__ import annotations

__all__ = ["COCO", "IMAGENET_HEADS", "published_classes"]

#: COCO's 80 categories in the order of their ids, as published checkpoints number them.
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

#: What a backbone's classifier of so many classes was trained on.
IMAGENET_HEADS = {1000: "ImageNet-1k", 11821: "ImageNet-12k", 21841: "ImageNet-22k"}


def published_classes(count: int | None) -> list[str] | None:
    """Return the names of a detector of ``count`` classes that does not state them; None where nothing is known."""
    return list(COCO) if count == len(COCO) else None
