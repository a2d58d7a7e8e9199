"""The rank in plain PyTorch: sums of micro-batches, clipping, float32 copies, and its state on disk."""

from __future__ import annotations

import math

import pytest
import torch

from hindsight.learner import rank_state
from hindsight.learner.plain import PlainEngine, PlainOptimizer

INPUT = torch.arange(12, dtype=torch.float32).reshape(4, 3) / 10


def engine(max_grad_norm=0.0, dtype=torch.float32):
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2).to(dtype)
    return PlainEngine(module, PlainOptimizer(list(module.parameters()), 0.1, 0.01), max_grad_norm)


def update(one, *micros):
    for index, rows in enumerate(micros):
        one.set_gradient_accumulation_boundary(index == len(micros) - 1)
        one.backward(one(rows.to(one.module.weight.dtype)).float().square().sum())
        one.step()


def test_micro_batches_are_summed_and_the_step_is_adamws():
    whole, parts = engine(), engine()
    update(whole, INPUT)
    update(parts, INPUT[:1], INPUT[1:])
    torch.manual_seed(0)
    plain = torch.nn.Linear(3, 2)
    adam = torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=0.01)
    plain(INPUT).square().sum().backward()
    norm = math.sqrt(sum(float(one.grad.square().sum()) for one in plain.parameters()))
    adam.step()
    for one in (whole, parts):
        torch.testing.assert_close(one.module.weight, plain.weight)
        assert one.get_global_grad_norm() == pytest.approx(norm)
        assert one.global_steps == 1


def test_a_long_gradient_is_clipped_and_its_norm_reported():
    free, clipped = engine(), engine(max_grad_norm=0.5)
    for one in (free, clipped):
        one.optimizer.optimizer = torch.optim.SGD(one.optimizer.fp32_groups[0], lr=1.0)
    start = clipped.module.weight.detach().clone(), clipped.module.bias.detach().clone()
    update(free, INPUT)
    update(clipped, INPUT)
    assert clipped.get_global_grad_norm() == pytest.approx(free.get_global_grad_norm()) and free.norm > 0.5
    moved = [now.detach() - before for now, before in zip(clipped.module.parameters(), start, strict=True)]
    assert math.sqrt(sum(float(one.square().sum()) for one in moved)) == pytest.approx(0.5, rel=1e-4)


def test_small_steps_add_up_in_bfloat16():
    one = engine(dtype=torch.bfloat16)
    one.optimizer.param_groups[0]["lr"] = 1e-4
    before = one.module.weight.detach().clone()
    for _ in range(40):
        update(one, INPUT)
    assert not torch.equal(one.module.weight, before)  # each step alone would be rounded away


def test_a_saved_state_goes_on_the_same(tmp_path):
    first, second = engine(), engine()
    update(first, INPUT)
    rank_state.save(first, tmp_path, 0, {})
    rank_state.load(second, tmp_path, 0, {})
    assert second.global_steps == 1
    for one in (first, second):
        update(one, INPUT + 1)
    for ours, theirs in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)
