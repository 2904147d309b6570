"""The recipe of a run: every setting that the user leaves open, chosen from the data and the machine, with the reason.

``choose_recipe`` is a pure function: the same settings, statistics and machine give the same recipe. Comments say which
numbers are measured and which are plausible defaults; the measurements are in ``docs/experiments.md``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from nextdetr.config import TrainConfig
from nextdetr.data.cache import cache_bytes
from nextdetr.data.raw import plural
from nextdetr.engine.fine_tune import GENTLE, FineTuning
from nextdetr.engine.loading import shrink_limit
from nextdetr.engine.recipe_length import COST, affordable_size, choose_length, expected_epochs, seconds_an_image
from nextdetr.engine.recipe_plan import SIZES, Plan, Recipe
from nextdetr.engine.statistics import DataStats, Machine

__all__ = ["backbone_factor", "choose_recipe"]

# GPU memory per image at 640 px in gigabytes, by size of the family (estimated from the activations).
GIGABYTES = {
    "nextdetr-zepto": 0.3, "nextdetr-zepto-p2": 0.4, "nextdetr-atto-p2": 0.7, "nextdetr-atto": 0.5, "nextdetr-femto": 0.6,
    "nextdetr-pico": 0.8, "nextdetr-nano": 1.0,
    "nextdetr-tiny": 1.5, "nextdetr-base": 2.5, "nextdetr-large": 4.0, "nextdetr-huge": 8.0,
}  # fmt: skip
# Without a GPU. On BCCD zepto has a higher AP than atto after 8 minutes (0.578, 0.533), nearly the same after 24 (0.593,
# 0.603), and takes a third of the time per image.
DEFAULT_MODEL, DENSE_MODEL, SMALL_MODEL = "nextdetr-zepto", "nextdetr-atto", "nextdetr-atto-p2"
FINE = (SMALL_MODEL, "nextdetr-zepto-p2")  # with a level of stride 4; chosen for boxes, never for a machine
# Largest size for a number of images on a GPU, from random weights: a large backbone learns little from few images.
BY_IMAGES = ((500, "nextdetr-pico"), (2000, "nextdetr-nano"), (20_000, "nextdetr-tiny"), (math.inf, "nextdetr-base"))

SMALL_BOX = 16  # pixels that a small box should cover in the input: two cells of stride 8; half of that with stride 4
ENLARGE = 1.5  # maximum enlargement: upsampling adds no information
SET_ASIDE = 0.2  # of the images, if the data set has no val; a common fraction, not measured
RATE, RATE_BATCH, RATE_MOST = 4e-4, 8, 1e-3  # measured at batch 8; larger batches by the square root, as usual for Adam
# A narrow head tolerates a higher rate if all images are alike; measured for atto and its p2 with three classes, and taken
# over for zepto and its p2. On 80 classes and 80 images the same model learnt nothing at 8e-4, but quickly at 2e-4.
RATE_OF = dict.fromkeys(("nextdetr-zepto", "nextdetr-zepto-p2", "nextdetr-atto", "nextdetr-atto-p2"), 8e-4)
FEW_CLASSES, RATE_MANY = 10, 2e-4
# Measured with few classes: 0.592 AP on BCCD in eight minutes of zepto from random weights, AdamW 0.561 (three seeds); from
# a detector of other classes 0.471 after 260 steps, AdamW 0.395 (three seeds); from weights pre-trained without labels
# 0.354 after 500 steps on 20 images, AdamW 0.305. With atto it gained nothing so far.
MUON_MODEL, MUON_RATE = "nextdetr-zepto", 2.0  # times AdamW's rate
QUERIES, QUERIES_ELSEWHERE = {
    "nextdetr-zepto": 100, "nextdetr-zepto-p2": 200, "nextdetr-atto": 200, "nextdetr-femto": 200, "deimv2-atto": 100,
    "deimv2-femto": 150, "deimv2-pico": 200,
}, 300  # fmt: skip
LEAST_TO_FREEZE = 5  # least epochs of a run in which one goes to the head alone
SPARSE = 8  # boxes per image below which small batches and mosaics help; measured only at 4.6
FULL_FROM = 5000  # images for RT-DETR's own augmentation
FEW_IMAGES = 100  # below this, turned images may help: they gain at 20 images, and lose at 205 in as many steps
CACHE_MOST = 8.0  # gigabytes
RARE = 0.05  # of the most frequent class's boxes


def choose_recipe(
    config: TrainConfig,
    data: DataStats,
    machine: Machine,
    *,
    models: Sequence[str],
    backbone: str | None = None,
    other_backbone: bool = False,
    without_labels: bool = False,
    stride: int = 32,
    within: int | None = None,
    teacher_gflop: float | None = None,
    set_aside: float | None = None,
    tuning: FineTuning | None = None,
    gflop: float | None = None,
) -> Recipe:
    """Fill in what the user left open.

    Args:
        config: settings; those given by the user (``model_fields_set``) are kept.
        data: the training split.
        machine: the machine of the run.
        models: names of the shipped models.
        backbone: size of the backbone weights (``atto`` …), if they have one.
        other_backbone: whether the model file names weights for the backbone; those of the settings count anyway.
        without_labels: whether the backbone weights were trained without labels (FCMAE, ours or the published ones).
        stride: stride of the model; a chosen image size is a multiple of it.
        within: largest image size that meets ``latency``; None without ``latency``.
        teacher_gflop: cost of the teacher for an image at 320 px; None without a teacher, 0 if unknown.
        set_aside: fraction of the images that was split off as ``val``; None if the data set has its own.
        tuning: consequences of the detector to start from; None if there is none or it is unknown.
        gflop: cost of the model for an image at 320 px, if it is not a shipped one of known cost; None if unknown.

    Returns:
        The settings with their reasons.
    """
    plan = Plan(config, data, machine, stride, teacher_gflop)
    plan.within, plan.tuning, plan.gflop = within, tuning, gflop
    plan.other_backbone = plan.other_backbone or other_backbone
    if tuning is not None:
        plan.reasons.append(tuning.reason)
    if set_aside is not None:
        plan.choose("there is no val: this fraction of train chooses the best weights", split_off=set_aside)
    _teacher(plan)
    _model(plan, models, backbone)
    _image_size(plan)
    _batch(plan)
    choose_length(plan)
    _rates(plan, without_labels)
    _augmentation(plan)
    _loading(plan)
    _warnings(plan)
    values = {name: getattr(config, name) for name in config.model_fields_set} | plan.chosen
    seconds = seconds_an_image(plan, plan.size)
    return Recipe(TrainConfig.model_validate(values), plan.reasons, plan.chosen, seconds)


def _teacher(plan: Plan) -> None:
    if plan.teacher_gflop is None:
        return
    cost = f"{plan.teacher_gflop:.3g} GFLOP" if plan.teacher_gflop else "one run of the exported file"
    until = "" if plan.config.teacher_until == 1 else f", in the first {plan.config.teacher_until:.0%} of the run"
    plan.reasons.append(f"--teacher {plan.config.teacher}: it looks at every image{until}, {cost} each at {SIZES[0]} px")


def _model(plan: Plan, models: Sequence[str], backbone: str | None) -> None:
    if not plan.open("model"):
        return
    if backbone is None and plan.tuning is not None and plan.tuning.model in models:
        plan.choose("the one of these weights", model=plan.tuning.model)
    elif backbone is not None and f"nextdetr-{backbone}" in models:
        plan.choose("the size of the backbone's weights", model=f"nextdetr-{backbone}")
    elif plan.on_gpu and plan.config.weights is None and plan.config.backbone_weights is None:
        wanted = next(name for images, name in BY_IMAGES if plan.data.images <= images)
        budget = 0.6 * plan.machine.device_memory / 2**30 / 4  # room for at least four images at 640 px
        sizes = [name for name in COST if name in models and name not in FINE]
        fitting = [name for name in sizes if GIGABYTES[name] <= budget and COST[name] <= COST[wanted]]
        name = fitting[-1] if fitting else DEFAULT_MODEL
        plan.choose(
            f"{plural(plan.data.images, 'image')}, {plan.machine.device_memory / 2**30:.0f} GB of GPU memory", model=name
        )
    elif plan.config.weights is None:
        small = SMALL_MODEL in models and plan.data.boxes > 0 and _needed(plan) > 1.5 * SIZES[0]
        dense = plan.data.most_boxes > QUERIES[DEFAULT_MODEL]
        model = SMALL_MODEL if small else DENSE_MODEL if dense else DEFAULT_MODEL
        more = " with a level of stride 4 for small boxes" if small else f" with more than {QUERIES[DEFAULT_MODEL]} queries"
        kind = f"fast enough,{more}," if small or dense else "the fastest"
        plan.choose(f"{kind} for {plural(plan.machine.threads, 'thread')} and no NVIDIA GPU to train on", model=model)


def _image_size(plan: Plan) -> None:
    own = _size_to_reduce(plan) if plan.trained else None
    if (plan.trained and own is None) or not plan.data.boxes:  # without boxes the model file's will do
        return
    wanted = max(_needed(plan), SIZES[0]) if plan.within is None else plan.within
    size = min(wanted, SIZES[1], max(ENLARGE * plan.data.longest_side, SIZES[0]))
    size = min(SIZES[1], plan.stride * math.ceil(size / plan.stride))
    affordable = affordable_size(plan)
    limit = f"; {plan.get('minutes'):g} minutes show too few images of a larger size" if affordable < size else ""
    size = min(size, affordable)
    size = max(1, size // plan.stride) * plan.stride
    if own is not None and size >= own:
        return
    reason = f"nine boxes in ten are {plan.data.small_side * size:.0f} px or larger at this size{limit}"
    if plan.within is not None:
        kept = (
            "the largest that keeps the latency whole" if size == plan.within else f"{plan.within} would keep the latency"
        )
        reason = f"{kept}; {reason}"
    if own is not None:
        reason += f"; an image of the weights' {own} px would take {(own / size) ** 2:.2g} times as long on a processor"
    plan.choose(reason, image_size=size)


def _size_to_reduce(plan: Plan) -> int | None:
    """Return the size of the weights if a smaller one may be chosen: on a CPU, unless our own training chose it."""
    if plan.tuning is None or plan.tuning.size_is_trained or plan.machine.device != "cpu":
        return None
    return plan.tuning.image_size


def _needed(plan: Plan) -> float:
    """Input size at which a small box has enough pixels for the finest level."""
    pixels = SMALL_BOX / 2 if plan.shipped in FINE else SMALL_BOX
    return pixels / max(plan.data.small_side, 1e-6)


def _batch(plan: Plan) -> None:
    images, most = plan.data.images // plan.machine.processes, 8
    size = plan.size
    if plan.on_gpu:
        each = GIGABYTES.get(plan.shipped, 2.0) * (1.25 * size / 640) ** 2
        most = 2 ** int(math.log2(min(32.0, max(1.0, 0.6 * plan.machine.device_memory / 2**30 / each))))
    elif _is_sparse(plan):
        most = 4
    batch = most
    while batch > 4 and images < 8 * batch:
        batch //= 2
    why = f"{math.ceil(max(1, images) / batch)} steps an epoch"
    plan.choose(why + (", within the GPU's memory" if plan.on_gpu and batch == most else ""), batch_size=batch)


def _optimizer(plan: Plan, model: str, without_labels: bool) -> float:
    """Choose the optimiser where something is still to be learnt; return its learning rate as a factor of AdamW's."""
    gentle = plan.other_backbone and not without_labels  # a backbone that was trained with labels
    if gentle or model != MUON_MODEL or len(plan.data.classes) > FEW_CLASSES:
        return 1.0
    plan.choose("learns more per step than AdamW", optimizer="muon")
    return MUON_RATE if plan.get("optimizer") == "muon" else 1.0


def _rates(plan: Plan, without_labels: bool) -> None:
    scale = math.sqrt(max(1.0, plan.together / RATE_BATCH))
    tuning = plan.tuning
    if tuning is not None:
        own = not plan.other_backbone
        factor = tuning.backbone_factor if own else backbone_factor(without_labels)
        plan.choose("", backbone_rate_factor=factor, freeze_norms=own and tuning.freeze_norms)
        norms = " --freeze-norms" if plan.chosen.get("freeze_norms") else ""
        if "backbone_rate_factor" in plan.chosen:
            plan.reasons.append(f"--backbone-rate-factor {factor:g}{norms}: for a backbone of this kind")
    if plan.trained and (tuning is None or tuning.knows_all):
        reason = "a quarter of the usual rate: the weights are trained already"
        plan.choose(reason, learning_rate=round(min(RATE_MOST, RATE * scale) * GENTLE, 7))
        return
    few = len(plan.data.classes) <= FEW_CLASSES
    model = plan.shipped
    if tuning is not None and tuning.model is not None and model.endswith((".yaml", ".yml")):
        model = tuning.model  # close to it, or its weights would not fit
    base, times = RATE_OF.get(model, RATE) if few else RATE_MANY, _optimizer(plan, model, without_labels)
    rate = times * min(RATE_MOST, base * scale)
    measured = "what this model was trained with here" if few else f"{len(plan.data.classes)} classes need a lower rate"
    why = measured if rate == times * base else f"scaled by the square root of {plan.together} images a step"
    plan.choose("" if rate == RATE else why, learning_rate=round(rate, 7))
    if tuning is not None:
        return
    if not plan.other_backbone:
        plan.choose("", backbone_rate_factor=1.0)
        return
    factor = backbone_factor(without_labels)
    if without_labels:
        plan.choose("pre-trained without labels: the backbone has yet to learn the task", backbone_rate_factor=factor)
    else:
        plan.choose("the backbone was trained with labels: a low rate keeps what it learnt", backbone_rate_factor=factor)
        if LEAST_TO_FREEZE <= expected_epochs(plan) < math.inf:  # of an unknown number, the first may be the only one
            plan.choose("the new head settles before the backbone follows it", freeze_backbone_epochs=1)
    if COST.get(plan.get("model"), 1.0) >= COST["nextdetr-tiny"]:
        plan.choose("a large pre-trained backbone on little data", drop_path=0.1)


def backbone_factor(without_labels: bool) -> float:
    """Return the rate of a backbone that starts from weights, as a factor of the head's.

    Weights trained with labels need a low rate. The result of ``nextdetr pretrain`` is only a starting point: slowing its
    early layers lost most of the gain (docs/experiments.md).
    """
    return 1.0 if without_labels else 0.1


def _augmentation(plan: Plan) -> None:
    full = plan.data.images >= FULL_FROM and plan.on_gpu
    why = "are enough for it" if full else "need their colours and most of their area"
    plan.choose(f"{plan.data.images:,} images {why}", augmentation="full" if full else "mild")
    if _is_sparse(plan):
        each = plan.data.boxes / plan.data.images
        plan.choose(f"{each:.1f} boxes per image; with more of them a step teaches more", mosaic=0.5, copy_paste=0.5)
    sided = [name for name in plan.data.classes if re.search(r"(?<![a-z])(left|right)(?![a-z])", name.lower())]
    if sided:
        plan.choose(f"the class {sided[0]!r} would not survive mirroring", flip_horizontal=False)
    elif plan.data.images < FEW_IMAGES and plan.open("flip_vertical", "rotate90") and plan.get("flip_horizontal"):
        plan.choose(
            "if the detector turns out to find turned objects too, it learns from turned images: 0.02 AP more with 20 "
            "images of cells",
            auto_turn=True,
        )


def _is_sparse(plan: Plan) -> bool:
    return not plan.trained and 0 < plan.data.boxes < SPARSE * plan.data.images


def _loading(plan: Plan) -> None:
    machine = plan.machine
    workers = min(8, max(1, machine.cores // machine.processes - 1)) if plan.on_gpu else 1
    plan.choose("" if workers == 1 else f"{machine.cores} cores", workers=workers)
    room = round(min(CACHE_MOST, machine.memory / 2**30 / 2 / machine.processes), 1)
    plan.choose("", cache_gigabytes=room)
    budget = float(plan.get("cache_gigabytes")) * 2**30
    limit = shrink_limit(plan.size)
    needed = {"full": cache_bytes(plan.data.extents), "shrunk": cache_bytes(plan.data.extents, limit)}
    mode = next((name for name, size in needed.items() if size <= budget), "off")
    state = f"shrunk to a shorter side of {limit} px, " if mode == "shrunk" else ""
    size = needed["full" if mode == "full" else "shrunk"] / 2**30
    least = "; no more is free" if mode == "off" else ""
    plan.choose(f"{state}the decoded images take {size:.2g} of {budget / 2**30:.2g} GB{least}", cache=mode)
    kept = plan.config.cache
    if not plan.open("cache") and needed.get(kept, 0) > budget:
        plan.reasons.append(
            f"note: decoded, the images take {needed[kept] / 2**30:.2g} GB, more than --cache-gigabytes "
            f"{budget / 2**30:.2g}: none is kept"
        )


def _warnings(plan: Plan) -> None:
    counts = plan.data.boxes_by_class
    rare = [(n, name) for n, name in zip(counts, plan.data.classes, strict=True) if n < RARE * max(counts, default=0)]
    if rare:
        number, name = min(rare)
        more = f" and {len(rare) - 1} more" if len(rare) > 1 else ""
        plan.reasons.append(f"note: few boxes of {name!r} ({number:,} of {plan.data.boxes:,}){more}; expect less of it")
    queries = QUERIES.get(plan.shipped, QUERIES_ELSEWHERE)
    if plan.data.most_boxes > queries:
        plan.reasons.append(
            f"note: an image has {plan.data.most_boxes} boxes, and the model {queries} queries: it finds at most that many"
        )
