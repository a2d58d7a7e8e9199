"""Where an actor computes."""

from __future__ import annotations

import ray
import torch


class DeviceError(RuntimeError):
    """The actor was given a GPU that it cannot use."""


def find_device() -> str:
    """`cuda` or `cpu`.

    Raises:
        DeviceError: Ray gave this actor a GPU and torch sees none: it would compute on the CPU, unnoticed.
    """
    if torch.cuda.is_available():
        return "cuda"
    if ray.is_initialized() and ray.get_gpu_ids():
        raise DeviceError(
            "Ray gave this actor a GPU and torch sees none: install the gpu packages on this node "
            "(scripts/setup where nvidia-smi is found), or a driver for their CUDA version"
        )
    return "cpu"
