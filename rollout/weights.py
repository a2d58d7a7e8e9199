"""Named tensors as one flat byte buffer, for weight syncs from the learner to the engines and the teacher.

Pure: no Ray, no vLLM. The layout gives each tensor's position, so a receiver uses views without copying.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    import ray

    from hindsight.rollout.segment import SegmentHandle

WORD = 8  # bytes
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
    """One version of all weights, in memory; read it by `segment.fetch`."""

    version: int
    layout: Layout
    checksum: str  # of the buffer, from `pack_tensors`
    data: ray.ObjectRef | None = None  # flat uint8 array in the object store
    segment: SegmentHandle | None = None  # the same bytes in shared memory; rewritten by a later version


class Packed(NamedTuple):
    """Tensors in one buffer."""

    flat: np.ndarray  # (bytes,) uint8
    layout: Layout
    checksum: str


def meta_of(name: str, tensor: torch.Tensor) -> TensorMeta:
    """Return the metadata of a tensor."""
    return TensorMeta(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def offsets(layout: Sequence[TensorMeta]) -> list[int]:
    """Return the first byte of each tensor, then the size of the buffer: len(layout) + 1 numbers."""
    padded = (-(-meta.nbytes // ALIGNMENT) * ALIGNMENT for meta in layout)
    return list(accumulate(padded, initial=0))


def pack_tensors(
    named_tensors: Iterable[tuple[str, torch.Tensor]],
    layout: Layout | None = None,
    into: np.ndarray | None = None,
) -> Packed:
    """Copy tensors into one buffer.

    Pass `named_parameters()`: it omits the second name of tied weights, as the engines expect. With a
    `layout` (shapes known in advance, as under ZeRO-3), tensors are read one at a time and may be freed in
    between. Without one, all tensors are in memory at once.

    Args:
        into: the buffer, (bytes,) uint8, whose padding is zero; new memory costs several times the copy.

    Returns:
        The buffer, its layout and its checksum. The same tensors always give the same bytes.

    Raises:
        ValueError: the tensors do not match `layout`, or `into` is too small or too large.
    """
    if layout is None:
        named_tensors = list(named_tensors)
        layout = tuple(meta_of(name, tensor) for name, tensor in named_tensors)
    flat = np.zeros(offsets(layout)[-1], dtype=np.uint8) if into is None else into
    sums = []
    for meta, (_, target), (name, tensor) in zip(
        layout, unpack_tensors(flat, layout), named_tensors, strict=True
    ):
        if (found := meta_of(name, tensor)) != meta:
            raise ValueError(f"weights do not match their layout: expected {meta}, got {found}")
        copy(tensor.detach(), target)
        sums.append(word_sum(target))  # now: small tensors are still in the processor's cache
    return Packed(flat, layout, digest_of_sums(sums))


def copy(tensor: torch.Tensor, target: torch.Tensor) -> None:
    """Copy into a contiguous tensor on the CPU, past the processor's caches where they would be too small."""
    if tensor.device.type == "cpu" and tensor.is_contiguous():  # torch's own copy goes through the caches
        np.copyto(as_bytes(target).numpy(), as_bytes(tensor).numpy())
    else:
        target.copy_(tensor)


def unpack_tensors(flat: np.ndarray, layout: Sequence[TensorMeta]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield views of the buffer in layout order. They must not be written where the buffer is read-only.

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
    """Return the `digest_of_sums` of the tensors in a buffer."""
    return digest_of_sums([word_sum(tensor) for _, tensor in unpack_tensors(flat, layout)])


def digest_of_sums(sums: Sequence[torch.Tensor]) -> str:
    """Return a text that differs if the `word_sum` of any tensor does, or their order.

    It is for accidents, not for adversaries: a cryptographic hash of all bytes would cost ten copies.
    """
    joined = torch.stack(list(sums)).cpu().numpy() if sums else np.zeros(0, dtype=np.int64)
    return hashlib.sha256(joined.tobytes()).hexdigest()


def word_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Return the wrapping sum of a tensor's bytes seen as 64-bit words, () int64 on its device.

    The last word is filled up with zeros. A sum changes with every bit, and costs less than a copy.
    """
    data = as_bytes(tensor.detach().contiguous())
    if data.storage_offset() % WORD:
        data = data.clone()
    whole = data.numel() // WORD * WORD
    words = data[:whole].view(torch.int64)
    on_cpu = words.device.type == "cpu"  # where torch's threads would wait for each other
    total = torch.as_tensor(words.numpy().sum()) if on_cpu else words.sum()
    if whole < data.numel():
        rest = torch.zeros(WORD, dtype=torch.uint8, device=data.device)
        rest[: data.numel() - whole] = data[whole:]
        total = total + rest.view(torch.int64)[0]
    return total


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous tensor's bytes as a view, (bytes,) uint8."""
    if not tensor.numel():  # torch cannot view zero bytes as another dtype
        return torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return tensor.view(-1).view(torch.uint8)
