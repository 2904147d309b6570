"""Checks that every tensor passes on its way into a model or file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nextdetr.errors import WeightsError

__all__ = ["check_tensor", "check_tensors", "fill", "is_finite"]


def check_tensor(
    source: str, name: str, tensor: Tensor, *, dtype: torch.dtype, shape: Sequence[int | None] | None = None
) -> None:
    """Refuse a tensor that could be loaded but would not work.

    Args:
        source: file, for the message.
        name: name of the target.
        tensor: tensor to be copied; on the meta device, its values are not checked.
        dtype: type it will be cast to.
        shape: required shape, with None for any length; None for any shape.

    Raises:
        WeightsError: it has another shape or an unsuitable type (integers for weights), or holds NaN or infinity after the
            cast.
    """
    if shape is not None and not _fits(tensor.shape, shape):
        wanted = [length if length is not None else "any" for length in shape]
        raise WeightsError(
            f"{source}: the tensor for {name} has the shape {list(tensor.shape)}, but {wanted} is needed; the file is for "
            "another model, or damaged."
        )
    ordinary = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_complex()
    if not ordinary or tensor.is_floating_point() != dtype.is_floating_point:
        kind, wanted_kind = (str(value).removeprefix("torch.") for value in (tensor.dtype, dtype))
        raise WeightsError(
            f"{source}: the tensor for {name} is of type {kind}, but {wanted_kind} is needed; the file is damaged."
        )
    if not tensor.is_floating_point() or tensor.is_meta or is_finite(tensor, dtype):
        return
    if tensor.dtype != dtype and is_finite(tensor, tensor.dtype):
        raise WeightsError(
            f"{source}: the tensor for {name} holds numbers too large for {str(dtype).removeprefix('torch.')}, "
            "in which they are infinite, so nothing would come of it; take another file."
        )
    raise WeightsError(
        f"{source}: the tensor for {name} holds NaN or infinity, so no detector would come of it; "
        "take an earlier checkpoint of the same training."
    )


def check_tensors(source: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse what cannot be weights in any layout: integers are only allowed as a norm's batch counter.

    Raises:
        WeightsError: see ``check_tensor``.
    """
    for name, tensor in tensors.items():
        counter = name.endswith("num_batches_tracked")
        keeps = tensor.is_floating_point() or counter
        check_tensor(source, name, tensor, dtype=tensor.dtype if keeps else torch.float32)


def fill(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into those of a model, all or none.

    Args:
        own: the model's tensors by name; all names of ``tensors`` are among them.
        tensors: tensors of the file.
        source: file, for messages.

    Raises:
        WeightsError: see ``check_tensor``; nothing was copied.
    """
    for name, tensor in tensors.items():
        check_tensor(source, name, tensor, dtype=own[name].dtype, shape=own[name].shape)
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def is_finite(tensor: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether a floating-point tensor has neither NaN nor infinity, also after a cast to ``dtype``; checks its extremes."""
    for part in torch.split(tensor.flatten(), 1 << 20):
        if part.numel():
            low, high = torch.aminmax(part.float() if part.element_size() == 1 else part)
            extremes = torch.stack((low, high)).to(dtype or tensor.dtype)
            if not torch.isfinite(extremes.float() if extremes.element_size() == 1 else extremes).all():
                return False
    return True


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(
        other is None or length == other for length, other in zip(shape, wanted, strict=True)
    )
