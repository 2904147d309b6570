"""RT-DETR with ConvNeXt V2 backbones inside ultralytics, without a patched file: import ``RTDETR`` from here."""

from nextdetr_ultralytics.rtdetr import RTDETR

__version__ = "0.1.0"

__all__ = ["RTDETR", "__version__"]
