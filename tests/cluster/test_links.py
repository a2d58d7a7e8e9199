"""Pairs of processes that sum a tensor, as `hindsight doctor` asks of GPUs."""

from __future__ import annotations

import pytest

from hindsight.cluster.links import Link, LinkError, links_summary, measure_links


def test_every_pair_of_processes_sums_a_tensor() -> None:
    found = measure_links(3, "gloo", megabytes=0.1)
    assert [link.pair for link in found] == [(0, 1), (0, 2), (1, 2)]
    assert all(link.seconds > 0 and link.gb_per_s > 0 for link in found)


def test_a_process_that_fails_or_hangs_is_named_with_what_it_said() -> None:
    with pytest.raises(LinkError, match=r"none between GPUs 0-1 failed; the last line of its log: .*none"):
        measure_links(2, "none", megabytes=0.1)
    with pytest.raises(LinkError, match=r"GPUs 0-1 did not end within 0.1 s"):
        measure_links(2, "gloo", megabytes=0.1, limit=0.1)


def test_the_slowest_pair_is_named() -> None:
    fast, slow = Link((0, 1), 0.001, 200.0), Link((1, 2), 0.01, 20.0)
    assert links_summary([fast, slow]) == "2 pairs, 20.0 to 200.0 GB/s; slowest 1-2 (10.0 ms)"
