"""Importance weights by how many weight versions a token's sampling lags behind its update."""

from __future__ import annotations

import math

import pytest
import torch
from learner_toys import REWEIGHT

from hindsight.configs.schema import Loss
from hindsight.learner.losses import Tokens, merge, policy, report

HALVES = (slice(0, 2), slice(2, 5))  # two micro-batches


def test_importance_weights_are_reported_by_lag():
    ratios = torch.tensor([1.5, 0.5, 3.0, 4.0, 1.0])
    nothing = torch.zeros(5)
    lags = torch.tensor([0.0, 1.0, 1.0, 1.0, math.nan])
    tokens = Tokens(nothing, ratios.log(), nothing, lags, nothing, nothing, torch.ones(5))

    def stats(cap):
        parts = [Tokens(*(column[part] for column in vars(tokens).values())) for part in HALVES]
        sums = [policy(one.old, one.old, one, Loss(tis_cap=cap), REWEIGHT, 0.5)[1] for one in parts]
        found = report("policy", merge(sums), tokens=5, denominator=5)
        return {name: value for name, value in found.items() if "lag" in name}

    assert stats(2.0) == pytest.approx(
        {
            "token_share_lag_0": 1 / 5,
            "importance_lag_0": 1.5,
            "truncated_lag_0": 0.0,
            "token_share_lag_1": 3 / 5,  # the last token's lag is not known
            "importance_lag_1": (0.5 + 2 + 2) / 3,
            "truncated_lag_1": 2 / 3,
        }
    )
    uncorrected = stats(0.0)
    assert uncorrected["importance_lag_1"] == 1.0 and uncorrected["truncated_lag_1"] == 0.0
