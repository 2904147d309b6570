"""The model card of a detector: its training data, classes, scores and licence.

The card's metadata follow huggingface_hub's ``ModelCardData`` (library_name, pipeline_tag, license, model-index), plus
``weights_licence`` and ``source_weights`` from the detector file, so that no licence is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nextdetr.errors import ConfigError
from nextdetr.weights.licences import TEACHER, TEACHER_LICENCE, joined_licences, plain_licence

__all__ = ["CARD_MARK", "CardFacts", "card_licence", "model_card"]

#: Mark of every card that we write; a README without it is of other origin and is not overwritten.
CARD_MARK = "<!-- Written by NextDETR. -->"

#: Licences of weights, by their names on the Hub.
_HUB_LICENCES = {
    "agpl-3.0": "agpl-3.0", "apache-2.0": "apache-2.0", "bsd-3-clause": "bsd-3-clause", "cc-by-nc-4.0": "cc-by-nc-4.0",
    "cc-by-4.0": "cc-by-4.0", "cc0-1.0": "cc0-1.0", "mit": "mit", "gpl-3.0": "gpl-3.0", "cc-by-sa-4.0": "cc-by-sa-4.0",
    "cc-by-nc-sa-4.0": "cc-by-nc-sa-4.0",
}  # fmt: skip
#: Licences that allow derived weights to have another licence.
_PERMISSIVE = {"apache-2.0", "bsd-3-clause", "mit", "cc0-1.0", "cc-by-4.0", "none"}
_DUTIES = {
    "agpl-3.0": "AGPL-3.0 asks that users of what is built from the weights, services included, get its source.",
    "cc-by-nc": "CC BY-NC allows no commercial use.",
    "dinov3": "Meta's DINOv3 licence has terms of its own for the weights and what is made of them.",
    "unknown": "The licence of the weights that the training started from is not known; ask where they came from.",
}


@dataclass(frozen=True, slots=True)
class CardFacts:
    """Contents of a card.

    Attributes:
        title: name of the detector.
        model: shipped name of its architecture, or ``custom``.
        classes: C names.
        image_size: side of the square input in pixels.
        parameters: number of learnt parameters.
        metrics: COCO metrics, fractions 0 to 1 or None; empty if not scored.
        data: name of the data set, ``none`` if unknown.
        weights_licence: licence of the initial weights, several joined by " and "; ``none`` for random ones.
        source_weights: file names of these weights, or ``none``.
        licence: the owner's licence for the detector; None if there is none.
        repo_id: ``owner/name`` for the example.
        teacher: detectors that taught it, or ``none``.
        teacher_licence: licences of their weights.
    """

    title: str
    model: str
    classes: list[str]
    image_size: int
    parameters: int
    metrics: dict[str, float | None] = field(default_factory=dict)
    data: str = "none"
    weights_licence: str = "none"
    source_weights: str = "none"
    licence: str | None = None
    repo_id: str = "OWNER/NAME"
    teacher: str = "none"
    teacher_licence: str = "none"


def card_licence(weights_licence: str, licence: str | None) -> dict[str, str]:
    """Return the card's licence fields: those of the weights, unless they allow the owner to choose one.

    Args:
        weights_licence: licence of the initial weights.
        licence: the owner's licence.

    Raises:
        ConfigError: the owner's licence is not allowed by the weights.
    """
    inherited = [part for part in joined_licences([weights_licence]).split(" and ") if part != "none"]
    bound = [part for part in inherited if part.lower() not in _PERMISSIVE]
    if licence is not None and bound and [plain_licence(licence)] != [plain_licence(part) for part in bound]:
        raise ConfigError(
            f"the licence {licence} cannot be stated: the weights that the training started from are under "
            f"{' and '.join(bound)}; leave the licence out, and the card carries theirs along."
        )
    stated = [licence] if licence is not None else bound or inherited
    if not stated:
        return {}
    if len(stated) == 1 and stated[0].lower() in _HUB_LICENCES:
        return {"license": _HUB_LICENCES[stated[0].lower()]}
    return {"license": "other", "license_name": "-".join("".join(stated_part.split()) for stated_part in stated).lower()}


def model_card(facts: CardFacts) -> str:
    """Return the text of the card, including metadata.

    Raises:
        ConfigError: see ``card_licence``.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    scores = {name: value for name, value in facts.metrics.items() if isinstance(value, (int, float)) and value == value}
    data_name = "a data set of its owner" if facts.data == "none" else facts.data
    results = [
        EvalResult(
            task_type="object-detection", dataset_type="custom", dataset_name=data_name, dataset_split="val",
            metric_type=name.lower(), metric_name=f"COCO {name}", metric_value=round(float(scores[name]), 6),
        )
        for name in ("AP", "AP50", "AP75") if name in scores
    ]  # fmt: skip
    licence_fields: dict[str, Any] = card_licence(facts.weights_licence, facts.licence)
    taught: dict[str, Any] = (
        {} if facts.teacher == "none" else {TEACHER: facts.teacher, TEACHER_LICENCE: facts.teacher_licence}
    )
    data = ModelCardData(
        library_name="nextdetr", pipeline_tag="object-detection", model_name=facts.title, eval_results=results or None,
        tags=["object-detection", "rt-detr", "nextdetr"], weights_licence=facts.weights_licence,
        source_weights=facts.source_weights, **taught, **licence_fields,
    )  # fmt: skip
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(facts, scores, data_name)}"))


def _body(facts: CardFacts, scores: dict[str, float], data_name: str) -> str:
    sections = [
        f"{CARD_MARK}\n\n# {_plain(facts.title)}",
        f"An object detector: RT-DETR as NextDETR builds it, model `{_plain(facts.model)}`, {facts.parameters:,} "
        f"parameters; any image is resized to a square of {facts.image_size} pixels.",
        "## Use\n\nWith NextDETR installed:\n\n```python\nfrom nextdetr import Detector\n\n"
        f'detector = Detector.from_pretrained("{facts.repo_id}")\n'
        'detections = detector.predict("image.jpg")  # list[supervision.Detections]\n```',
        f"## Data\n\nTrained on {_plain(data_name)}.",
        f"## Classes\n\n{_classes(facts.classes)}",
        f"## Metrics\n\n{_metrics(scores, data_name)}",
        f"## Licence\n\n{_licence(facts)}",
    ]
    return "\n\n".join(sections) + "\n"


def _classes(classes: Sequence[str]) -> str:
    rows = [f"| {index} | {_cell(name)} |" for index, name in enumerate(classes)]
    return "\n".join([f"{len(classes)} in all:\n", "| index | name |", "|---:|---|", *rows])


def _metrics(scores: dict[str, float], data_name: str) -> str:
    if not scores:
        return "It has not been scored."
    rows = [f"| {name} | {value:.4f} |" for name, value in scores.items()]
    head = f"COCO metrics (0 to 1) on the validation images of {_plain(data_name)}, by which the weights were chosen:\n"
    return "\n".join([head, "| metric | value |", "|---|---:|", *rows])


def _licence(facts: CardFacts) -> str:
    fields = card_licence(facts.weights_licence, facts.licence)
    stated = fields.get("license_name", fields.get("license"))
    lines = [f"This detector: {stated}." if stated else "The owner has stated no licence."]
    if facts.source_weights == facts.weights_licence == "none":
        lines.append("Its training started from random weights.")
    elif facts.source_weights == "none":
        lines.append(f"Licence of the weights in it: **{_plain(facts.weights_licence)}**.")
    else:
        lines.append(
            f"Its training started from `{_plain(facts.source_weights)}`; licence of these weights: "
            f"**{_plain(facts.weights_licence)}**."
        )
    lowered = facts.weights_licence.lower()
    lines += [duty for name, duty in _DUTIES.items() if name in lowered]
    if facts.teacher != "none":
        lines.append(
            f"It learnt from the predictions of `{_plain(facts.teacher)}`; licence of those weights: "
            f"**{_plain(facts.teacher_licence)}**."
        )
    return " ".join(lines)


def _plain(text: str) -> str:
    """Text on one line, without markup: class and file names are untrusted."""
    return " ".join(text.split()).replace("`", "'").replace("<", "&lt;").replace(">", "&gt;")


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")
