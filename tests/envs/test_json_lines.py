"""JSON messages over a socket."""

from __future__ import annotations

import json
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hindsight.envs.runtime import json_lines as module
from hindsight.envs.runtime.json_lines import Abandoned, Lines, Lost

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.fixture
def ends():
    ours, theirs = map(Lines, socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


@given(st.lists(JSON, min_size=1, max_size=5))
def test_messages_arrive_in_order_and_unchanged(messages):
    ours, theirs = map(Lines, socket.socketpair())
    with ours.socket, theirs.socket:
        for message in messages:
            ours.send(message)
        assert [theirs.receive(5) for _ in messages] == messages


def test_a_message_larger_than_the_sockets_buffer_arrives(ends):
    ours, theirs = ends
    sender = threading.Thread(target=ours.send, args=["x" * 3_000_000])
    sender.start()
    assert theirs.receive(30) == "x" * 3_000_000
    sender.join()


class Searched(bytearray):
    """Counts the bytes that are searched."""

    bytes = 0

    def find(self, wanted, start=0):
        self.bytes += len(self) - start
        return super().find(wanted, start)


def test_a_long_message_is_searched_once(ends):
    ours, theirs = ends
    ours._read = found = Searched()
    sender = threading.Thread(target=theirs.send, args=["x" * 3_000_000])
    sender.start()
    ours.receive(30)
    sender.join()
    assert found.bytes < 3_100_000


@pytest.mark.parametrize(
    ("babble", "why"),
    [
        (b"hello\n", "not JSON"),
        (b"\xff\n", "not JSON"),
        (b"[1", "it ended"),
        (b"[" * 100_000 + b"\n", "not JSON"),
    ],
)
def test_garbage_and_ends_are_told(ends, babble, why):
    ours, theirs = ends
    theirs.socket.sendall(babble)
    theirs.close()
    with pytest.raises(Lost, match=why):
        ours.receive(5)


def test_silence_floods_and_hang_ups(ends, monkeypatch):
    ours, theirs = ends
    theirs.socket.sendall(b"[1,")
    with pytest.raises(Lost, match=r"within 0\.1 s"):
        ours.receive(0.1)
    theirs.socket.sendall(b"2]\n")
    assert ours.receive(5) == json.loads("[1,2]")
    watched, other = map(Lines, socket.socketpair())
    other.close()
    with watched.socket, pytest.raises(Abandoned):
        ours.receive(5, watch=watched)
    monkeypatch.setattr(module, "LONGEST", 10)
    theirs.socket.sendall(b"x" * 11)
    with pytest.raises(Lost, match="more than"):
        ours.receive(5)
    theirs.close()
    with pytest.raises(Lost):
        for _ in range(3):
            ours.send("x" * 100_000)
