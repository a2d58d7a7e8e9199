"""The rank in plain PyTorch: sums of micro-batches, clipping, float32 copies, and its state on disk."""

from __future__ import annotations

import math

import pytest
import torch
from learner_toys import random_samples, tiny_llama
from settled import on_cpus

from hindsight.configs.schema import Config, Learner, Model
from hindsight.learner import rank_state
from hindsight.learner.plain import PlainEngine, PlainOptimizer, PlainRank
from hindsight.learner.plan import plan_updates

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
    rank_state.save_rank_state(first, tmp_path, 0, {})
    rank_state.load_rank_state(second, tmp_path, 0, {})
    assert second.global_steps == 1
    for one in (first, second):
        update(one, INPUT + 1)
    for ours, theirs in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class CountingRank(PlainRank):
    """Counts what it reads."""

    read = 0

    def _forward(self, batch, objective, likeliest=0):
        self.read += 1
        return super()._forward(batch, objective, likeliest)


class EarlyRank(CountingRank):
    """Computes the old log-probs of every mini-batch by a pass of their own."""

    def _loss(self, batch, old, objective, strength):
        if old is None:
            with torch.no_grad():
                old = self._old(batch, objective)
        return super()._loss(batch, old, objective, strength)


@pytest.mark.parametrize("mini_batches", [1, 3])
def test_the_first_mini_batch_is_its_own_old_policy(mini_batches, tmp_path):
    """Its log-probs, detached, are what a pass before the update would give: for every loss and setting."""
    tiny_llama().save_pretrained(tmp_path)
    learner = Learner(mini_batches=mini_batches, micro_batch_tokens=64, ranks=1)
    config = on_cpus(Config(model=Model(dtype="float32"), learner=learner))
    plan = plan_updates("policy", random_samples(12), config, 1.0)
    [work] = plan.work
    made = []
    for kind in (CountingRank, EarlyRank):
        rank = kind(config, str(tmp_path), 0)
        rank.start()
        pieces = [
            [("policy", micro, scale) for micro in micros]
            for micros, scale in zip(work, plan.scales, strict=True)
        ]
        sums, norm = rank.update(pieces, 0.5, 1e-2)
        made.append((rank, sums["policy"], norm))
    (late, sums, norm), (early, others, other) = made
    assert norm == pytest.approx(other, rel=1e-5) and sums == pytest.approx(others, rel=1e-4, abs=1e-5)
    for one, two in zip(late.engine.module.parameters(), early.engine.module.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    counts = [len(micros) for micros in work]
    assert late.read == 2 * sum(counts) - counts[0] and early.read == 2 * sum(counts)
