"""Published weights that fit a shipped model: names, numbers and licences. To add one, add a line to a table.

Numbers are the publishers', as of 2026-11; unknown ones are None. Sources: the model zoos of lyuwenyu/RT-DETR (from which
PekingU's folders were converted), Peterande/D-FINE and Intellindust-AI-Lab/DEIMv2; facebookresearch/ConvNeXt-V2; timm's
table of models; the files' pages on the Hugging Face Hub for sizes (rounded as shown there).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from nextdetr.models.modelfile import available_models

__all__ = ["Published", "all_published", "close_names", "detector_up_to", "find_published", "listed_weights", "start_for"]

APACHE, NON_COMMERCIAL, DINOV3 = "Apache-2.0", "CC-BY-NC-4.0", "dinov3-license"


@dataclass(frozen=True, slots=True)
class Published:
    """One file or folder of weights.

    Attributes:
        name: short name, for ``--weights`` or ``--backbone-weights``.
        repository: ``owner/name`` on the Hugging Face Hub.
        model: shipped model of a detector; ``convnextv2-<size>`` for a backbone.
        parameters: as published, rounded.
        metric: published AP on COCO ``val2017`` of a detector, or top-1 accuracy on ImageNet-1k of a backbone, 0 to 1.
        licence: licence of the weights.
        megabytes: size of the file, as shown on its page.
        data: training data.
    """

    name: str
    repository: str
    model: str
    parameters: int | None
    metric: float | None
    licence: str
    megabytes: float | None
    data: str

    @property
    def part(self) -> Literal["detector", "backbone"]:
        """Which of ``--weights`` and ``--backbone-weights`` accepts it."""
        return "backbone" if self.model.startswith("convnextv2-") else "detector"

    def to_json(self) -> dict[str, Any]:
        """Return the entry of ``nextdetr weights list --json``."""
        measure = "AP" if self.part == "detector" else "top1"
        metric = None if self.metric is None else {"name": measure, "value": self.metric}
        return {
            "name": self.name, "repository": self.repository, "model": self.model, "part": self.part,
            "parameters": self.parameters, "metric": metric, "licence": self.licence,
            "bytes": None if self.megabytes is None else round(self.megabytes * 1e6), "data": self.data,
        }  # fmt: skip


COCO, O365 = "COCO", "Objects365, then COCO"
#: Name, repository, model, millions of parameters, AP in percent, megabytes, data. All Apache-2.0.
_DETECTORS: tuple[tuple[str, str, str, float | None, float | None, float | None, str], ...] = (
    ("rtdetr-r18vd-coco", "PekingU/rtdetr_r18vd", "rtdetr-r18vd", 20, 46.4, 80.9, COCO),
    ("rtdetr-r34vd-coco", "PekingU/rtdetr_r34vd", "rtdetr-r34vd", 31, 48.9, 126, COCO),
    ("rtdetr-r50vd-coco", "PekingU/rtdetr_r50vd", "rtdetr-r50vd", 42, 53.1, 172, COCO),
    ("rtdetr-r101vd-coco", "PekingU/rtdetr_r101vd", "rtdetr-r101vd", 76, 54.3, 307, COCO),
    ("rtdetr-r18vd-o365", "PekingU/rtdetr_r18vd_coco_o365", "rtdetr-r18vd", 20, 49.0, None, O365),
    ("rtdetr-r50vd-o365", "PekingU/rtdetr_r50vd_coco_o365", "rtdetr-r50vd", 42, 55.2, 172, O365),
    ("rtdetr-r101vd-o365", "PekingU/rtdetr_r101vd_coco_o365", "rtdetr-r101vd", 76, 56.2, 307, O365),
    ("rtdetrv2-r18vd-coco", "PekingU/rtdetr_v2_r18vd", "rtdetr-r18vd", 20, None, None, COCO),
    ("rtdetrv2-r34vd-coco", "PekingU/rtdetr_v2_r34vd", "rtdetr-r34vd", 31, 49.9, 126, COCO),
    ("rtdetrv2-r50vd-coco", "PekingU/rtdetr_v2_r50vd", "rtdetr-r50vd", 42, 53.4, 172, COCO),
    ("rtdetrv2-r101vd-coco", "PekingU/rtdetr_v2_r101vd", "rtdetr-r101vd", 76, 54.3, None, COCO),
    ("dfine-n-coco", "ustc-community/dfine-nano-coco", "dfine-n", 4, 42.8, 15.3, COCO),
    ("dfine-s-coco", "ustc-community/dfine-small-coco", "dfine-s", 10, 48.5, 41.5, COCO),
    ("dfine-l-coco", "ustc-community/dfine-large-coco", "dfine-l", 31, 54.0, 126, COCO),
    ("dfine-x-coco", "ustc-community/dfine-xlarge-coco", "dfine-x", 62, 55.8, 252, COCO),
    ("dfine-s-o365", "ustc-community/dfine-small-obj2coco", "dfine-s", 10, None, 41.5, O365),
    ("dfine-m-o365", "ustc-community/dfine-medium-obj2coco", "dfine-m", 19, None, 78.7, O365),
    ("dfine-x-o365", "ustc-community/dfine-xlarge-obj2coco", "dfine-x", 62, None, 252, O365),
    ("deimv2-atto-coco", "Intellindust/DEIMv2_HGNetv2_ATTO_COCO", "deimv2-atto", 0.5, 23.8, None, COCO),
    ("deimv2-femto-coco", "Intellindust/DEIMv2_HGNetv2_FEMTO_COCO", "deimv2-femto", 1.0, 31.0, None, COCO),
    ("deimv2-pico-coco", "Intellindust/DEIMv2_HGNetv2_PICO_COCO", "deimv2-pico", 1.5, 38.5, None, COCO),
    ("deimv2-n-coco", "Intellindust/DEIMv2_HGNetv2_N_COCO", "deimv2-n", 3.6, 43.0, None, COCO),
)

#: Size, millions of parameters, top-1 of ImageNet-1k in percent: fine-tuned on it alone, and after ImageNet-22k (224 px).
_CONVNEXT_V2: tuple[tuple[str, float, float, float | None], ...] = (
    ("atto", 3.7, 76.7, None),
    ("femto", 5.2, 78.5, None),
    ("pico", 9.1, 80.3, None),
    ("nano", 15.6, 81.9, 82.1),
    ("tiny", 28.6, 83.0, 83.9),
    ("base", 89, 84.9, 86.8),
    ("large", 198, 85.8, 87.3),
    ("huge", 660, 86.3, None),
)
_MEGABYTES = {"facebook/convnextv2-atto-1k-224": 14.9, "timm/convnext_atto.d2_in1k": 14.8}
#: Name, repository, size, millions of parameters, licence, data. LayerScale is folded into a ConvNeXt V2.
_CONVNEXT_V1: tuple[tuple[str, str, str, float | None, str, str], ...] = (
    ("convnext-atto-in1k", "timm/convnext_atto.d2_in1k", "atto", 3.7, APACHE, "ImageNet-1k"),
    ("convnext-femto-in1k", "timm/convnext_femto.d1_in1k", "femto", 5.2, APACHE, "ImageNet-1k"),
    ("convnext-pico-in1k", "timm/convnext_pico.d1_in1k", "pico", 9.1, APACHE, "ImageNet-1k"),
    ("convnext-nano-in12k", "timm/convnext_nano.in12k_ft_in1k", "nano", 15.6, APACHE, "ImageNet-12k, then 1k"),
    ("convnext-tiny-in12k", "timm/convnext_tiny.in12k_ft_in1k", "tiny", 28.6, APACHE, "ImageNet-12k, then 1k"),
    ("convnext-tiny-dinov3", "timm/convnext_tiny.dinov3_lvd1689m", "tiny", None, DINOV3, "LVD-1689M, no labels"),
    ("convnext-base-dinov3", "timm/convnext_base.dinov3_lvd1689m", "base", None, DINOV3, "LVD-1689M, no labels"),
    ("convnext-large-dinov3", "timm/convnext_large.dinov3_lvd1689m", "large", None, DINOV3, "LVD-1689M, no labels"),
)  # fmt: skip


def _millions(count: float | None) -> int | None:
    return None if count is None else round(count * 1e6)


def _share(percent: float | None) -> float | None:
    return None if percent is None else round(percent / 100, 4)


def all_published() -> Iterator[Published]:
    """Yield every entry, including those of models that are not shipped (yet)."""
    for name, repository, model, count, precision, megabytes, data in _DETECTORS:
        yield Published(name, repository, model, _millions(count), _share(precision), APACHE, megabytes, data)
    for size, count, first, second in _CONVNEXT_V2:
        rows = [
            (f"convnextv2-{size}-fcmae", f"timm/convnextv2_{size}.fcmae", None, "ImageNet-1k, no labels"),
            (f"convnextv2-{size}-in1k", f"timm/convnextv2_{size}.fcmae_ft_in1k", first, "ImageNet-1k"),
            (f"convnextv2-{size}-in1k-facebook", f"facebook/convnextv2-{size}-1k-224", first, "ImageNet-1k"),
        ]
        if second is not None:
            after = "ImageNet-22k, then 1k"
            rows.append((f"convnextv2-{size}-in22k", f"timm/convnextv2_{size}.fcmae_ft_in22k_in1k", second, after))
            rows.append((f"convnextv2-{size}-in22k-facebook", f"facebook/convnextv2-{size}-22k-224", second, after))
        for name, repository, accuracy, data in rows:
            yield Published(
                name, repository, f"convnextv2-{size}", _millions(count), _share(accuracy), NON_COMMERCIAL,
                _MEGABYTES.get(repository), data,
            )  # fmt: skip
    for name, repository, size, known, licence, data in _CONVNEXT_V1:
        megabytes = _MEGABYTES.get(repository)
        yield Published(name, repository, f"convnextv2-{size}", _millions(known), None, licence, megabytes, data)


def listed_weights() -> list[Published]:
    """Return the entries whose models are shipped."""
    shipped = set(available_models())
    return [entry for entry in all_published() if entry.part == "backbone" or entry.model in shipped]


def find_published(name: str) -> Published | None:
    """Return the entry of a short name, or of a repository ``owner/name``, each perhaps with a revision; otherwise None."""
    plain = name.partition("@")[0]
    return next((entry for entry in all_published() if plain in (entry.name, entry.repository)), None)


def close_names(name: str) -> list[str]:
    """Return similar short names, closest first."""
    return difflib.get_close_matches(name, [entry.name for entry in listed_weights()], n=2, cutoff=0.6)


def start_for(model: str, backbone: str | None) -> Published | None:
    """Return the published weights that are the best start for a model: its own detector's, else its backbone's.

    Among several, the one with the highest published score is used, preferably with a free choice of licence; backbones
    without a published score come last.

    Args:
        model: a shipped name.
        backbone: size of its ConvNeXt V2; None for other backbones.
    """
    entries = listed_weights()
    fitting = [entry for entry in entries if entry.model == model]
    fitting = fitting or [entry for entry in entries if backbone is not None and entry.model == f"convnextv2-{backbone}"]
    return max(fitting, key=lambda entry: (entry.licence == APACHE, entry.metric or 0.0), default=None)


def detector_up_to(parameters: int) -> Published | None:
    """Return the published detector with the highest AP among those with at most ``parameters``, if any."""
    fitting = [
        entry for entry in listed_weights()
        if entry.part == "detector" and entry.metric is not None and (entry.parameters or math.inf) <= parameters
    ]  # fmt: skip
    return max(fitting, key=lambda entry: entry.metric or 0.0, default=None)
