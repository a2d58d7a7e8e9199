"""Rows of a micro-batch as one sequence without padding, in which what rows begin with in common stands once.

    rows      a b c d e     a b c f     g h
    packed    a b c d e f g h           each token sees the tokens before it in its row

Causal hidden states depend on earlier tokens of the row only, so all numbers are those of the separate rows.
The model reads the packed sequence through its own attention interface in transformers: `attend_by_row` and
`attend_at_once` are registered there. All other layers see one (1, N) batch.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from hindsight.teacher.cpu_attention import causal_attention

log = logging.getLogger(__name__)
BY_ROW, AT_ONCE = "hindsight_by_row", "hindsight_at_once"  # names in transformers' attention interface
HALVES = (torch.bfloat16, torch.float16)  # the types of the variable-length kernel
TOLERANCE = 0.02  # largest relative difference of the two attentions in bfloat16


class PackingError(RuntimeError):
    """A model was to read several rows at once and cannot."""


@dataclass(frozen=True)
class PackedRows:
    """B rows in one sequence of N tokens. A row begins with `shared` tokens of the row before it."""

    ids: torch.Tensor  # (N,) int64
    positions: torch.Tensor  # (N,) int64, of each token in its row
    own_ends: torch.Tensor  # (B + 1,) int32, 0 and the number of packed tokens up to each row's end
    row_ends: torch.Tensor  # (B + 1,) int32, 0 and the summed lengths of the rows
    lengths: tuple[int, ...]  # of each row
    shared: tuple[int, ...]  # of each row, how many of its tokens stand with an earlier row

    @property
    def own(self) -> list[int]:
        """How many tokens stand in the sequence for each row."""
        return [length - shared for length, shared in zip(self.lengths, self.shared, strict=True)]

    def to(self, device: torch.device) -> PackedRows:
        """Return the same rows on `device`."""
        names = ("ids", "positions", "own_ends", "row_ends")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def common(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two rows begin with in common."""
    size = min(len(first), len(second))
    apart = np.flatnonzero(first[:size] != second[:size])
    return int(apart[0]) if len(apart) else size


def pack_rows(rows: Sequence[np.ndarray]) -> tuple[PackedRows, list[np.ndarray]]:
    """Pack rows of ids; return also where each row's tokens are in the sequence, (L,) int64 each.

    Rows that begin alike should follow each other; otherwise their beginning stands twice.
    """
    places: list[np.ndarray] = []
    shared: list[int] = []
    size = 0
    for number, row in enumerate(rows):
        same = common(rows[number - 1], row) if number else 0
        before = places[-1][:same] if same else np.zeros(0, np.int64)
        places.append(np.concatenate([before, np.arange(size, size + len(row) - same)]))
        shared.append(same)
        size += len(row) - same
    lengths = [len(row) for row in rows]
    own = [length - same for length, same in zip(lengths, shared, strict=True)]
    packed = PackedRows(
        ids=_join([row[same:] for row, same in zip(rows, shared, strict=True)]),
        positions=_join([np.arange(same, size) for same, size in zip(shared, lengths, strict=True)]),
        own_ends=_ends(own),
        row_ends=_ends(lengths),
        lengths=tuple(lengths),
        shared=tuple(shared),
    )
    return packed, places


def _join(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _ends(sizes: Sequence[int]) -> torch.Tensor:
    return torch.tensor(np.cumsum([0, *sizes]), dtype=torch.int32)


def hidden_states(trunk: Any, rows: PackedRows) -> torch.Tensor:
    """(N, H) last hidden states of a causal LM without its head, after `enable_packing`.

    Raises:
        PackingError: the model reads one row at a time, and there are several.
    """
    inputs: dict[str, Any] = {}
    if trunk.config.get_text_config()._attn_implementation in (BY_ROW, AT_ONCE):
        inputs = {"position_ids": rows.positions[None], "packed_rows": rows}
    elif len(rows.lengths) > 1:
        raise PackingError(f"{type(trunk).__name__} reads one row at a time, and got {len(rows.lengths)}")
    states: torch.Tensor = trunk(input_ids=rows.ids[None], use_cache=False, **inputs).last_hidden_state
    return states[0]


def enable_packing(lm: Any, device: torch.device) -> str:
    """Let a transformers causal LM read packed rows; return why it cannot, or "".

    Args:
        device: where it will run.
    """
    reason = obstacle(lm)
    if not reason:
        from transformers import AttentionInterface

        AttentionInterface.register(BY_ROW, attend_by_row)
        AttentionInterface.register(AT_ONCE, attend_at_once)
        lm.set_attn_implementation(AT_ONCE if kernel_agrees(lm, device) else BY_ROW)
    return reason


def obstacle(lm: Any) -> str:
    """Why this causal LM cannot read packed rows; "" if it can."""
    config = lm.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None) or lm._is_stateful:
        return "it has layers without full attention"
    forward = inspect.signature(lm.base_model.forward).parameters.values()
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in forward)
    if not (lm._supports_attention_backend and lm._supports_flash_attn and passes_on):
        return "its attention does not go through transformers' attention interface"
    return ""


def kernel_agrees(lm: Any, device: torch.device) -> bool:
    """Whether torch's variable-length kernel runs for this model on this device, and gives what it should."""
    if device.type != "cuda" or lm.dtype not in HALVES or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    config = lm.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    rows = pack_rows([np.array([1, 2, 3, 4, 5]), np.array([1, 2, 3, 6]), np.array([7])])[0].to(device)
    made = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, count, len(rows.ids), size, generator=made).to(device, lm.dtype)
        for count in (heads, *[getattr(config, "num_key_value_heads", None) or heads] * 2)
    )
    expected = _by_row(query, key, value, rows, None, 0.0)
    try:
        apart = float((_at_once(query, key, value, rows, None) - expected).float().norm())
    except RuntimeError as error:  # not built for this GPU, or not for heads of this size
        log.warning("rows are read without PyTorch's variable-length attention: %s", error)
        return False
    agrees = apart <= TOLERANCE * float(expected.float().norm())
    if not agrees:
        log.warning("rows are read without PyTorch's variable-length attention: it differs by %.3g", apart)
    return agrees


def attend_by_row(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **given: Any
) -> tuple[torch.Tensor, None]:
    """Causal attention row by row; see `transformers.AttentionInterface`.

    Args:
        query, key, value: (1, heads, N, D); keys and values may have fewer heads.

    Returns:
        (1, N, heads, D).
    """
    rows = _rows(module, given)
    made = _by_row(query, key, value, rows, given.get("scaling"), given.get("dropout", 0.0))
    return made.transpose(1, 2).contiguous(), None


def attend_at_once(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **given: Any
) -> tuple[torch.Tensor, None]:
    """As `attend_by_row`, in one call of the variable-length kernel; without dropout only."""
    if given.get("dropout"):
        return attend_by_row(module, query, key, value, **given)
    made = _at_once(query, key, value, _rows(module, given), given.get("scaling"))
    return made.transpose(1, 2).contiguous(), None


def _rows(module: nn.Module, given: dict[str, Any]) -> PackedRows:
    """The rows, which a model's forward passes on.

    Raises:
        PackingError: it does not, or wants another attention.
    """
    rows = given.get("packed_rows")
    odd = [name for name in ("sliding_window", "softcap", "s_aux") if given.get(name) is not None]
    if not isinstance(rows, PackedRows) or odd:
        raise PackingError(f"{type(module).__name__} asks for {', '.join(odd) or 'attention without rows'}")
    return rows


def _by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: PackedRows,
    scale: float | None,
    dropout: float,
) -> torch.Tensor:
    """Return (1, heads, N, D)."""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and not dropout:
        return _by_products(query, key, value, rows, scale)
    grouped = query.shape[1] != key.shape[1]
    made = []
    queries, keys, values = (_whole(one, rows) for one in (query, key, value))
    for shared, q, k, v in zip(rows.shared, queries, keys, values, strict=True):
        if q.shape[2] > shared:
            # Shared queries are computed again in each row: then no mask is needed.
            seen = nn.functional.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=grouped
            )
            made.append(seen[:, :, shared:])
    return torch.cat(made, dim=2)


def _by_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: PackedRows, scale: float | None
) -> torch.Tensor:
    """As `_by_row`, where matrix products are faster than torch's kernel."""
    keys, values = _whole(key, rows), _whole(value, rows)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    made = [
        causal_attention(q[0], k[0], v[0], scale)
        for q, k, v in zip(query.split(rows.own, dim=2), keys, values, strict=True)
    ]
    return torch.cat(made, dim=1)[None]


def _at_once(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: PackedRows, scale: float | None
) -> torch.Tensor:
    """(1, heads, N, D). A row's own queries see all its keys: the kernel aligns their ends."""
    from torch.nn.attention.varlen import varlen_attn

    if any(rows.shared):
        key, value = (torch.cat(list(_whole(one, rows)), dim=2) for one in (key, value))
    q, k, v = (one[0].transpose(0, 1) for one in (query, key, value))
    made = varlen_attn(
        q,
        k,
        v,
        rows.own_ends,
        rows.row_ends,
        max(rows.own),
        max(rows.lengths),
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=True,
    )
    assert isinstance(made, torch.Tensor)  # it was asked for nothing else
    return made.transpose(0, 1)[None]


def _whole(packed: torch.Tensor, rows: PackedRows) -> Iterator[torch.Tensor]:
    """Each row of (1, heads, N, D), with what it shares with the row before it: (1, heads, L, D)."""
    before = packed[:, :, :0]
    for own, shared in zip(packed.split(rows.own, dim=2), rows.shared, strict=True):
        before = torch.cat([before[:, :, :shared], own], dim=2) if shared else own
        yield before
