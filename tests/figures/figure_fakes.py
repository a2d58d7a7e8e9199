"""What stands in for models and a renderer: pure functions of token ids, free of the project's API.

u(role, ids) in [0, 1) is the first 6 bytes, little-endian, of SHA-256("<role>:" + the ids as little-endian
int32), over 2**48. "Up to p" includes the token at p; "before p" does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

CLOSE_IDS = (257, 258)  # end the user's message and open the assistant's turn
USER_ID = 256  # opens the user's message
END_ID = 259  # ends a turn
SECOND_MESSAGE = (260, 256)  # end a user's message and open another one
TEACHER_CONTEXT = 330  # most tokens of one score request
CANDIDATES = 4  # distil.top_k in all recordings
VOCABULARY = 997
SCORE_NOISE = 0.5  # half its width, on a scorer's log-probs


def encode(text: str) -> np.ndarray:
    """(n,) int32: the UTF-8 bytes of the text."""
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)


def shown(text: str, actions: Sequence[str]) -> str:
    """An observation as the student was shown it."""
    return f"{text.strip()}\nActions: {', '.join(actions)}" if actions else text.strip()


def unit(role: str, ids: Sequence[int] | np.ndarray) -> float:
    """u(role, ids)."""
    data = role.encode() + b":" + np.asarray(ids, dtype="<i4").tobytes()
    return int.from_bytes(hashlib.sha256(data).digest()[:6], "little") / 2**48


def base(token: int) -> float:
    """The log-prob of a token before noise, in [-2.6, -0.6]."""
    return -(0.6 + (int(token) * 37 % 101) / 50)


def noise(role: str, ids: Sequence[int] | np.ndarray) -> float:
    """In [-1, 1)."""
    return 2 * unit(role, ids) - 1


def score(role: str, context: np.ndarray, start: int, end: int) -> np.ndarray:
    """(n,) float32 log-probs of context[start:end] by the "teacher" or the "reference": base + noise / 2 of
    all ids up to the token."""
    return _float32(
        [base(context[p]) + SCORE_NOISE * noise(role, context[: p + 1]) for p in range(start, end)]
    )


def score_candidates(role: str, context: np.ndarray, places: Sequence[int], wanted: np.ndarray) -> np.ndarray:
    """(n, k) float32: log(0.02 + 0.2·u(role, ids before the place and the token)) of each wanted token.

    Where u("<role> sharp", ids before the place) < 0.08, it is log(0.26 + 0.05·u): nothing is left for the
    rest of the vocabulary.
    """
    probabilities = []
    for p, row in zip(places, wanted, strict=True):
        low, width = (0.26, 0.05) if unit(f"{role} sharp", context[:p]) < 0.08 else (0.02, 0.2)
        probabilities.append([low + width * unit(role, [*context[:p], token]) for token in row])
    return np.log(np.array(probabilities, dtype=np.float64).reshape(wanted.shape)).astype(np.float32)


def likeliest(ids: np.ndarray, places: Sequence[int], k: int = CANDIDATES) -> np.ndarray:
    """(n, k) int32: the student's candidates at each place, (⌊997·u(ids before it)⌋ + 13·j) mod 997."""
    first = [int(VOCABULARY * unit("likeliest", ids[:p])) for p in places]
    return np.array([[(one + 13 * j) % VOCABULARY for j in range(k)] for one in first], np.int32).reshape(
        -1, k
    )


def student(ids: np.ndarray, places: Sequence[int], rollout: np.ndarray) -> np.ndarray:
    """(n,) float32: the rollout's log-prob + 1.2·noise³ of the ids up to the token."""
    return _float32(
        [value + 1.2 * noise("student", ids[: p + 1]) ** 3 for p, value in zip(places, rollout, strict=True)]
    )


def before(ids: np.ndarray, places: Sequence[int], now: np.ndarray) -> np.ndarray:
    """(n,) float32 old log-probs in the stage "later": the student's + 1.3·noise of the ids up to it."""
    return _float32([value + 1.3 * noise("old", ids[: p + 1]) for p, value in zip(places, now, strict=True)])


def entropy(ids: np.ndarray, places: Sequence[int]) -> np.ndarray:
    """(n,) float32: 0.5 + 2·u of the ids before the token."""
    return _float32([0.5 + 2 * unit("entropy", ids[:p]) for p in places])


def critic(ids: np.ndarray, places: Sequence[int]) -> np.ndarray:
    """(n,) float32 values before an update: 10·u of the ids before the token."""
    return _float32([10 * unit("value", ids[:p]) for p in places])


def critic_later(ids: np.ndarray, places: Sequence[int], values: np.ndarray) -> np.ndarray:
    """(n,) float32 values in the stage "later": moved by 1.5·noise of the ids before the token."""
    return _float32([v + 1.5 * noise("value now", ids[:p]) for p, v in zip(places, values, strict=True)])


def _float32(values: Sequence[float]) -> np.ndarray:
    return np.array(values, dtype=np.float64).astype(np.float32)
