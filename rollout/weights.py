"""Named tensors as one flat byte buffer: how weights travel from the learner to the engines and the teacher.

Pure: no Ray, no vLLM. A layout says where each tensor lies, so a receiver gets views and copies nothing.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import ray

ALIGNMENT = 64  # bytes; a multiple of every dtype's size, so that a view of any dtype is allowed


@dataclass(frozen=True)
class TensorMeta:
    """One tensor of a buffer, under its Hugging Face parameter name."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # name in torch, e.g. "bfloat16"

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor itself, without padding."""
        return prod(self.shape) * getattr(torch, self.dtype).itemsize


Layout = tuple[TensorMeta, ...]


@dataclass(frozen=True)
class WeightSet:
    """One version of all weights, in memory."""

    version: int
    layout: Layout
    digest: str  # of the buffer, by `digest`
    data: ray.ObjectRef  # flat uint8 array, by `pack`


def describe(name: str, tensor: torch.Tensor) -> TensorMeta:
    """What `pack` writes down about a tensor."""
    return TensorMeta(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def offsets(layout: Sequence[TensorMeta]) -> list[int]:
    """First byte of each tensor, and last the size of the whole buffer: len(layout) + 1 numbers."""
    padded = (-(-meta.nbytes // ALIGNMENT) * ALIGNMENT for meta in layout)
    return list(accumulate(padded, initial=0))


def pack(
    named_tensors: Iterable[tuple[str, torch.Tensor]], layout: Layout | None = None
) -> tuple[np.ndarray, Layout]:
    """Copy tensors into one buffer.

    Pass `named_parameters()`, which leaves out the second name of tied weights, as the engines expect.
    With a `layout` (shapes known beforehand, as under ZeRO-3) the tensors are taken one by one and may be
    freed in between; without one they must all be alive at once.

    Returns: the buffer, (bytes,) uint8, and its layout. The same tensors always give the same bytes.
    Raises ValueError where the tensors are not what `layout` says.
    """
    if layout is None:
        named_tensors = list(named_tensors)
        layout = tuple(describe(name, tensor) for name, tensor in named_tensors)
    starts = offsets(layout)
    flat = np.zeros(starts[-1], dtype=np.uint8)
    for meta, start, (name, tensor) in zip(layout, starts[:-1], named_tensors, strict=True):
        if (found := describe(name, tensor)) != meta:
            raise ValueError(f"weights do not fit their layout: expected {meta}, got {found}")
        if not meta.nbytes:
            continue  # torch cannot view no bytes as another type
        target = torch.from_numpy(flat[start : start + meta.nbytes])
        target.view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())
    return flat, layout


def unpack(flat: np.ndarray, layout: Sequence[TensorMeta]) -> Iterator[tuple[str, torch.Tensor]]:
    """Views into the buffer, in layout order. Only read them: the buffer may be shared memory.

    Raises ValueError where the buffer's size is not what `layout` says.
    """
    starts = offsets(layout)
    if flat.size != starts[-1]:
        raise ValueError(f"buffer of {flat.size} bytes for a layout of {starts[-1]} bytes")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        whole = torch.from_numpy(flat)
    for meta, start in zip(layout, starts[:-1], strict=True):
        dtype, held = getattr(torch, meta.dtype), whole[start : start + meta.nbytes]
        yield meta.name, (held.view(dtype) if meta.nbytes else torch.empty(0, dtype=dtype)).view(meta.shape)


def digest(flat: np.ndarray) -> str:
    """Fingerprint of a buffer: SHA-256, about 1.8 GB/s on a current core."""
    return hashlib.sha256(flat.data).hexdigest()
