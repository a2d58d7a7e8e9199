"""Named tensors as one flat byte buffer, for weight syncs from the learner to the engines and the teacher.

Pure: no Ray, no vLLM. The layout gives each tensor's position, so a receiver uses views without copying.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import ray

ALIGNMENT = 64  # bytes; a multiple of every dtype's size, so that a tensor of any dtype can be a view


@dataclass(frozen=True)
class TensorMeta:
    """One tensor of a buffer. The name is its Hugging Face parameter name."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # torch's name, e.g. "bfloat16"

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes, without padding."""
        return prod(self.shape) * getattr(torch, self.dtype).itemsize


Layout = tuple[TensorMeta, ...]


@dataclass(frozen=True)
class WeightSet:
    """One version of all weights, in memory."""

    version: int
    layout: Layout
    checksum: str  # of the buffer, from `checksum`
    data: ray.ObjectRef  # flat uint8 array, from `pack`


def describe(name: str, tensor: torch.Tensor) -> TensorMeta:
    """Return the metadata of a tensor."""
    return TensorMeta(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def offsets(layout: Sequence[TensorMeta]) -> list[int]:
    """Return the first byte of each tensor, then the size of the buffer: len(layout) + 1 numbers."""
    padded = (-(-meta.nbytes // ALIGNMENT) * ALIGNMENT for meta in layout)
    return list(accumulate(padded, initial=0))


def pack(
    named_tensors: Iterable[tuple[str, torch.Tensor]],
    layout: Layout | None = None,
    buffers: dict[Layout, np.ndarray] | None = None,
) -> tuple[np.ndarray, Layout]:
    """Copy tensors into one buffer.

    Pass `named_parameters()`: it omits the second name of tied weights, as the engines expect. With a
    `layout` (shapes known in advance, as under ZeRO-3), tensors are read one at a time and may be freed in
    between. Without one, all tensors are in memory at once.

    Args:
        buffers: earlier buffers, to write into again: new memory costs several times the copy.

    Returns:
        The buffer, (bytes,) uint8, and its layout. The same tensors always give the same bytes.

    Raises:
        ValueError: the tensors do not match `layout`.
    """
    if layout is None:
        named_tensors = list(named_tensors)
        layout = tuple(describe(name, tensor) for name, tensor in named_tensors)
    starts = offsets(layout)
    held = {} if buffers is None else buffers
    if layout not in held:
        held[layout] = np.zeros(starts[-1], dtype=np.uint8)
    flat = held[layout]
    for meta, start, (name, tensor) in zip(layout, starts[:-1], named_tensors, strict=True):
        if (found := describe(name, tensor)) != meta:
            raise ValueError(f"weights do not match their layout: expected {meta}, got {found}")
        if not meta.nbytes:
            continue  # torch cannot view zero bytes as another dtype
        target = torch.from_numpy(flat[start : start + meta.nbytes])
        target.view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())
    return flat, layout


def unpack(flat: np.ndarray, layout: Sequence[TensorMeta]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield views of the buffer in layout order. They are read-only, as the buffer may be shared memory.

    Raises:
        ValueError: the buffer's size does not match `layout`.
    """
    starts = offsets(layout)
    if flat.size != starts[-1]:
        raise ValueError(f"buffer of {flat.size} bytes does not match its layout of {starts[-1]} bytes")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        whole = torch.from_numpy(flat)
    for meta, start in zip(layout, starts[:-1], strict=True):
        dtype, held = getattr(torch, meta.dtype), whole[start : start + meta.nbytes]
        yield meta.name, (held.view(dtype) if meta.nbytes else torch.empty(0, dtype=dtype)).view(meta.shape)


def checksum(flat: np.ndarray, layout: Sequence[TensorMeta]) -> str:
    """Return a text that differs if any tensor's bytes do: the wrapping sums of their 64-bit words, hashed.

    It is for accidents, not for adversaries, and costs less than a copy of the buffer; a cryptographic hash
    of all bytes would cost ten.
    """
    words, starts = flat.view(np.uint64), [start // 8 for start in offsets(layout)]
    sums = [words[start:end].sum(dtype=np.uint64) for start, end in pairwise(starts)]
    return hashlib.sha256(np.array(sums, dtype=np.uint64).tobytes()).hexdigest()
