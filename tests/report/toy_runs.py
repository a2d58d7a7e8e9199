"""Small synthetic run folders, as a run writes them."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HOSTILE = "<script>window.pwned = 1</script> <img src=x onerror='window.pwned = 1'> </script>"
START = 1_790_000_000.0
METRICS = {"eval/low": 0.1, "eval/high": 0.7, "eval/episodes": 8.0, "eval/missing": 0.0}


def write_run(
    folder: Path, steps: int = 3, groups: int = 2, group_size: int = 4, turns: int = 4, name: str = "toy"
) -> Path:
    """A run of `steps` steps and two evaluations, with tokens, a timeline and a hostile observation."""
    draw = random.Random(name)
    for part in ("trajectories", "tokens"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    _about(folder, steps)
    rows: list[dict[str, Any]] = []
    spans: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        episodes = [
            _episode(draw, f"task {(step + group) % 4}", group * group_size + index, group, turns)
            for group in range(groups)
            for index in range(group_size)
        ]
        _lines(folder / f"trajectories/step-{step:06d}.jsonl", episodes)
        tokens = [_tokens(draw, one, number) for one in episodes for number in range(len(one["turns"]))]
        with gzip.open(folder / f"tokens/step-{step:06d}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in tokens)
        success = sum(one["success"] for one in episodes) / len(episodes)
        rows.append(_row(step, success, len(episodes), turns))
        spans += _spans(step, groups)
    for step, stage in ((0, "before warm start"), (steps, "after RL")):
        file = folder / f"trajectories/eval-{step:06d}-{stage.replace(' ', '-')}.jsonl"
        plain = [_episode(draw, f"held-out {index}", index, index, turns, False) for index in range(4)]
        _lines(file, plain)
        row = {"step": step, "kind": "eval", "stage": stage, "time": START + 100 * step + 90}
        rows.append({**row, **METRICS, "eval/success": 0.4, "eval/turns": 3.0, "eval/seconds": 9.0})
    _lines(folder / "metrics.jsonl", rows)
    _lines(folder / "timeline.jsonl", spans)
    failure = {"step": 1, "kind": "timeout", "task": "task 1", "message": f"no answer in 20 s {HOSTILE}"}
    _lines(folder / "failures.jsonl", [failure])
    return folder


def write_sparse_run(folder: Path) -> Path:
    """A run of which neither run.json nor tokens nor the timeline is left."""
    write_run(folder)
    shutil.rmtree(folder / "tokens")
    for extra in ("run.json", "timeline.jsonl"):
        (folder / extra).unlink()
    return folder


def _about(folder: Path, steps: int) -> None:
    start = {
        "started": "2026-09-21T13:33:20+00:00", "command": "hindsight train nano method=serl",
        "commit": "0123abc", "dirty": False, "host": "toy", "resumed_from_step": None,
        "versions": {"hindsight": "0.1.0", "python": "3.11.7"},
        "ended": "2026-09-21T13:43:20+00:00", "outcome": "finished",
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps({"schema": 1, "starts": [start]}))
    (folder / "config.yaml").write_text(
        f"method: serl\nsteps: {steps}\nmodel: {{path: nano}}\nenv: {{name: alfworld, max_turns: 12}}\n"
    )


def _lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _episode(
    draw: random.Random, task: str, episode: int, group: int, turns: int, training: bool = True
) -> dict[str, Any]:
    success = draw.random() < 0.5
    return {
        "task": task, "kind": "pick_and_place", "success": success, "reward": float(success),
        "ended": "terminated" if success else "truncated", "episode": episode, "group": group,
        "preamble": "You act in a household.",
        "turns": [_turn(number, training) for number in range(turns)],
    }  # fmt: skip


def _turn(number: int, training: bool) -> dict[str, Any]:
    seen = HOSTILE if number == 1 else "A mug is here."
    turn = {
        "observation": f"You are in the kitchen, turn {number}. {seen}",
        "response": "I look for the mug. <action>take mug 1 from shelf 1</action>",
        "action": "take mug 1 from shelf 1", "valid": number != 2, "weights": [number],
        "feedback": "You pick up the mug 1 from the shelf 1." if number != 2 else "Nothing happens.",
    }  # fmt: skip
    if training:
        turn |= {"reward": 0.0, "hint": f"The action of turn {number} was answered: mug 1 is now held."}
    if training and number == 0:
        turn["notes"] = [{"kind": "diagnosis", "text": f"The first action decided the episode. {HOSTILE}"}]
    return turn


def _tokens(draw: random.Random, episode: Mapping[str, Any], turn: int) -> dict[str, Any]:
    pieces = ["I", " look", " for", " the", " mug", ".", " <", "action", ">", "take", " mug", " ", "1",
              " from", " shelf", " ", "1", "</", "action", ">", "\n", "<|im_end|>"]  # fmt: skip
    n = len(pieces)
    scored = [9 <= at < 17 for at in range(n)]
    advantage = 0.5 if episode["success"] else -0.5
    raw = [draw.uniform(0.0, 3.0) if one else None for one in scored]
    weight = [None if one is None else min(max(one, 0.5), 2.0) for one in raw]
    student = [-draw.expovariate(1.5) for _ in range(n)]
    return {
        "episode": episode["episode"], "turn": turn,
        "prompt": f"<|im_start|>user\n{episode['turns'][turn]['observation']}<|im_end|>\n",
        "tokens": pieces, "ids": list(range(n)), "action": [9, 17], "advantage": [advantage] * n,
        "rollout_logprob": student, "reference_logprob": None, "weight": weight, "raw_weight": raw,
        "teacher_logprob": [min(0.0, one - draw.gauss(0, 1)) if is_scored else None
                            for one, is_scored in zip(student, scored, strict=True)],
        "value": None, "return": None, "lag": [0] * n,
        "share": [abs(advantage * (1.0 if one is None else one)) / 2000 for one in weight],
    }  # fmt: skip


def _row(step: int, success: float, episodes: int, turns: int) -> dict[str, Any]:
    return {
        "step": step, "kind": "train", "stage": None, "time": START + 100 * step,
        "rollout/success": success, "rollout/reward": success, "rollout/episodes": float(episodes),
        "rollout/turns_per_episode": float(turns), "rollout/tokens_per_turn": 22.0, "time/step": 60.0,
        "time/rollout": 30.0, "time/feedback_and_teacher": 10.0, "time/learner": 15.0,
        "time/weight_sync": 5.0,
    }  # fmt: skip


def _spans(step: int, groups: int) -> list[dict[str, Any]]:
    start = START + 100 * step
    spans = [("rollout", f"group {group}", 2.0 * group, 25.0 + 5 * group) for group in range(groups)]
    spans += [("teacher", f"group {group}", 25.0 + 5 * group, 33.0 + 5 * group) for group in range(groups)]
    spans += [("learner", "update", 40.0, 55.0), ("weight_sync", "engine 0", 55.0, 60.0)]
    return [
        {"step": step, "role": role, "name": name, "start": start + begin, "end": start + end}
        for role, name, begin, end in spans
    ]
