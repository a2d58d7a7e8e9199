"""Weights in shared memory: who can map them, and what a crash leaves."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import ray

from hindsight.rollout.segment import (
    Mirror,
    Segment,
    SegmentError,
    SegmentHandle,
    SegmentUnreachable,
    attach,
    fetch,
)
from hindsight.rollout.weights import WeightSet

OWNER = """
import json, sys, time
from dataclasses import asdict
from hindsight.rollout.segment import Segment
segment = Segment(4096)
segment.data[:] = 7
print(json.dumps(asdict(segment.handle)), flush=True)
time.sleep(600)
"""


@pytest.fixture
def owner():
    """Another process with a segment full of sevens, and the segment's handle."""
    process = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    yield process, SegmentHandle(**json.loads(process.stdout.readline()))
    process.kill()
    process.wait()


def test_what_is_written_later_is_seen_and_nobody_else_writes():
    segment = Segment(4096)
    seen = attach(segment.handle)
    segment.data[5] = 9
    assert seen[5] == 9 and seen.size == 4096 and not seen[6:].any()
    assert attach(segment.handle) is seen  # mapped once
    with pytest.raises(ValueError, match="read-only"):
        seen[0] = 1


def test_a_killed_owner_leaves_readers_whole_and_nothing_behind(owner):
    process, handle = owner
    files = set(os.listdir("/dev/shm"))
    seen = attach(handle)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (seen == 7).all()
    attach.cache_clear()
    with pytest.raises(SegmentUnreachable, match=r"/proc/.*cannot be opened"):
        attach(handle)
    assert not set(os.listdir("/dev/shm")) - files


@pytest.mark.parametrize("change", [{"inode": 1}, {"size": 8192}])
def test_another_file_in_its_place_is_refused(change):
    segment = Segment(4096)
    with pytest.raises(SegmentUnreachable, match="is not the segment of"):
        attach(replace(segment.handle, **change))


def test_the_same_path_on_another_machine_is_refused():
    segment = Segment(4096)
    with pytest.raises(SegmentUnreachable, match="another machine"):
        attach(replace(segment.handle, boot="other"))


def test_too_little_memory_is_an_error_that_names_the_size():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(SegmentError, match=r"no shared memory for 3 MiB of weights .*more memory"):
            Segment(3 * 2**20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_a_segment_that_is_dropped_gives_its_memory_back():
    segment = Segment(4096)
    path = segment.handle.path
    assert os.path.exists(path)
    del segment
    assert not os.path.exists(path)


def test_who_cannot_map_reads_the_copy(monkeypatch):
    segment = Segment(4096)
    here = WeightSet(1, (), "", None, segment.handle)
    elsewhere = replace(here, segment=replace(segment.handle, boot="other"))
    assert fetch(here) is attach(segment.handle)
    with pytest.raises(SegmentUnreachable):
        fetch(elsewhere)
    copy = np.ones(4096, np.uint8)
    monkeypatch.setattr(ray, "get", {"reference": copy}.get)
    there = replace(elsewhere, data="reference")
    assert fetch(there) is copy
    mirror = Mirror()
    assert mirror.find(here) == segment.handle and mirror.copy is None
    assert (attach(mirror.find(there)) == 1).all() and mirror.find(there) == mirror.find(there)


def test_a_handle_passes_through_json():
    handle = Segment(4096).handle
    assert SegmentHandle(**json.loads(json.dumps(asdict(handle)))) == handle
