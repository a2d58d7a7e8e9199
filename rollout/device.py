"""The device that an actor computes on."""

from __future__ import annotations

import ray
import torch


class DeviceError(RuntimeError):
    """Ray assigned a GPU that torch cannot use."""


def find_device() -> str:
    """Return `cuda` or `cpu`.

    Raises:
        DeviceError: Ray assigned a GPU to this actor but torch finds none. Using the CPU would go unnoticed.
    """
    if torch.cuda.is_available():
        return "cuda"
    if ray.is_initialized() and ray.get_gpu_ids():
        raise DeviceError(
            "Ray assigned a GPU to this actor but torch finds none: install the GPU packages on this node "
            "(run scripts/setup where nvidia-smi is available) or a driver for their CUDA version"
        )
    return "cpu"
