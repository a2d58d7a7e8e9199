from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hindsight.rollout.router import Router


def test_a_group_gathers_until_the_load_says_otherwise():
    router = Router(2, slack=2)
    assert [router.place(group=0) for _ in range(4)] == [0, 0, 0, 1]
    assert router.place(group=1) == 1
    assert router.loads == [3, 2]


def test_a_failed_engine_is_avoided_where_there_is_another():
    assert Router(2).place(0, avoid=0) == 1
    assert Router(1).place(0, avoid=0) == 0


@given(
    st.integers(1, 4), st.integers(0, 3), st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60)
)
def test_loads_stay_balanced_and_exact(engines, slack, events):
    router = Router(engines, slack)
    placed: list[tuple[int, int]] = []
    for group, arrives in events:
        if arrives or not placed:
            before = min(router.loads)
            engine = router.place(group)
            assert router.loads[engine] - 1 <= before + slack
            placed.append((group, engine))
        else:
            router.leave(*placed.pop(0))
        assert router.loads == [sum(engine == e for _, e in placed) for engine in range(engines)]
