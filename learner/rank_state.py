"""Float32 weights and Adam's state on disk, for any number of ranks and any ZeRO stage.

DeepSpeed divides them among the ranks, as one flat vector (ZeRO 1, 2) or parameter by parameter (ZeRO 3).
Each rank writes the parts that it holds together with their place in the parameter. A rank of any other
division reads from these what it needs, to the bit. Files are safetensors, which hold numbers and no code.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hindsight.learner.checkpoint import CheckpointError

MASTER, MOMENTS = "master", ("exp_avg", "exp_avg_sq")  # Adam's names of its moments
FILE_BYTES = 2**30  # of one file, which is copied to the host to be written
KEY = re.compile(r"(\w+)/(.+)@(\d+)")  # kind, parameter, first element
Fragments = dict[tuple[str, str], list[tuple[int, Any]]]  # by kind and parameter: first element, its slice


@dataclass(frozen=True)
class Part:
    """What this rank holds of a parameter: `size` elements of the flattened parameter, from `start` on."""

    name: str
    start: int
    size: int
    holder: torch.Tensor  # what the optimizer trains; it has them from `at` on
    at: int

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """(size,) view of this part in the holder, or in a moment of it."""
        return whole.view(-1).narrow(0, self.at, self.size)


def rank_parts(engine: Any, rank: int) -> Iterator[Part]:
    """This rank's parts of everything that a DeepSpeed engine trains."""
    optimizer = engine.optimizer
    trained = [(name, one) for name, one in engine.module.named_parameters() if one.requires_grad]
    for name, parameter in trained:
        if hasattr(parameter, "ds_id"):  # ZeRO 3; the last rank's share is padded
            group, at, share = optimizer.grad_position[optimizer.get_param_id(parameter)]
            size = min(share, parameter.ds_numel - rank * share)
            if size > 0:
                yield Part(name, rank * share, size, optimizer.fp32_partitioned_groups_flat[group], at)
        elif hasattr(parameter, "_hp_mapping"):  # ZeRO 1 and 2
            place = parameter._hp_mapping
            if place is not None:
                here, there = place.lp_fragment_address, place.hp_fragment_address
                holder = optimizer.optimizer.param_groups[place.param_group_index]["params"][0]
                yield Part(name, here.start, here.numel, holder, there.start)
    if not is_divided(engine):
        for (name, parameter), holder in zip(trained, optimizer.fp32_groups[0], strict=True):
            yield Part(name, 0, parameter.numel(), holder, 0)


def is_divided(engine: Any) -> bool:
    """Whether each rank holds a share of the state; with ZeRO 0 each holds all."""
    return int(engine.zero_optimization_stage()) > 0


def save_rank_state(engine: Any, folder: Path, rank: int, extra: Mapping[str, torch.Tensor]) -> None:
    """Write this rank's parts into a new folder; no rank waits for another.

    Args:
        extra: tensors that every rank has; rank 0 writes them.

    Raises:
        OSError, SafetensorError: the disk is full or fails.
    """
    folder.mkdir(exist_ok=True)
    state = engine.optimizer.optimizer.state
    step = max((float(held["step"]) for held in state.values() if held), default=0.0)
    facts = {"step": str(step), "global_steps": str(engine.global_steps)}

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        if rank == 0:
            yield from extra.items()
        if rank and not is_divided(engine):
            return
        for part in rank_parts(engine, rank):
            yield f"{MASTER}/{part.name}@{part.start}", part.of(part.holder.detach())
            held = state.get(part.holder)  # before its first step Adam may have none
            for moment in MOMENTS if held else ():
                yield f"{moment}/{part.name}@{part.start}", part.of(held[moment])

    batch: dict[str, torch.Tensor] = {}
    number = size = 0
    for key, tensor in tensors():
        batch[key] = tensor.to("cpu", copy=True).contiguous()
        size += tensor.nbytes
        if size >= FILE_BYTES:
            save_file(batch, folder / f"rank{rank}-{number}.safetensors", metadata=facts)
            batch, number, size = {}, number + 1, 0
    save_file(batch, folder / f"rank{rank}-{number}.safetensors", metadata=facts)


@torch.no_grad()
def load_rank_state(engine: Any, folder: Path, rank: int, extra: Mapping[str, torch.Tensor]) -> None:
    """Read what `save_rank_state` wrote; every rank must call it.

    Args:
        extra: is overwritten.

    Raises:
        CheckpointError: the files are not of what this model trains.
    """
    with ExitStack() as opened:
        files = [opened.enter_context(safe_open(file, "pt")) for file in sorted(folder.glob("*.safetensors"))]
        if not files:
            raise CheckpointError(f"{folder} has no training state: resume from another checkpoint")
        facts = files[0].metadata()
        pieces: Fragments = defaultdict(list)
        missing = set(extra)
        for file in files:
            for key in list(file.keys()):
                if found := KEY.fullmatch(key):
                    kind, name, start = found.groups()
                    pieces[kind, name].append((int(start), file.get_slice(key)))
                elif key in extra:
                    extra[key].copy_(file.get_tensor(key))
                    missing.remove(key)
        if missing:
            raise CheckpointError(
                f"{folder} lacks {min(missing)}: keep the settings of the run that wrote it"
            )
        _check(engine, pieces, folder)
        for part in rank_parts(engine, rank):
            _fill(part.of(part.holder), part, pieces[MASTER, part.name])
            held = _adam(engine.optimizer.optimizer.state[part.holder], part.holder, float(facts["step"]))
            for moment in MOMENTS:
                part.of(held[moment]).zero_()  # it was, if no step had been
                _fill(part.of(held[moment]), part, pieces[moment, part.name])
    engine.global_steps = int(facts["global_steps"])
    _round_weights(engine)


def _check(engine: Any, pieces: Fragments, folder: Path) -> None:
    """Raise CheckpointError unless the files have every element of what is trained, and no others."""
    written = {
        name: sum(piece.get_shape()[0] for _, piece in own)
        for (kind, name), own in pieces.items()
        if kind == MASTER
    }
    trained = {
        name: getattr(parameter, "ds_numel", parameter.numel())
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
    }
    for name in sorted({*written, *trained}):
        if written.get(name) != trained.get(name):
            raise CheckpointError(
                f"{folder} has {written.get(name, 0)} elements of {name}, and the model trains "
                f"{trained.get(name, 0)}: keep the model and its adapter, or start anew with another `out`"
            )


def _fill(target: torch.Tensor, part: Part, pieces: list[tuple[int, Any]]) -> None:
    """Copy the part's elements from pieces that begin at these elements of the same parameter."""
    for start, piece in pieces:
        low = max(part.start, start)
        high = min(part.start + part.size, start + piece.get_shape()[0])
        if low < high:
            target[low - part.start : high - part.start].copy_(piece[low - start : high - start])


def _adam(held: dict[str, torch.Tensor], holder: torch.Tensor, step: float) -> dict[str, torch.Tensor]:
    """Adam's state of one of its parameters after `step` steps; it may have none yet."""
    if not held:
        held["step"] = torch.zeros((), dtype=torch.float32, device=holder.device)  # as fused Adam makes it
        held.update((moment, torch.zeros_like(holder)) for moment in MOMENTS)
    held["step"].fill_(step)
    return held


def _round_weights(engine: Any) -> None:
    """Set the model's weights to the float32 ones, in the model's type."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "update_lp_params"):  # ZeRO 1 and 2
        optimizer.update_lp_params()
    elif is_divided(engine):
        optimizer.checkpoint_event_prologue()  # no parameter is whole
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        optimizer.checkpoint_event_epilogue()
    else:
        for parameter, full in zip(optimizer.fp16_groups[0], optimizer.fp32_groups[0], strict=True):
            parameter.copy_(full)
