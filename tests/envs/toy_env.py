"""A counting environment whose actions also misbehave in every way a real one might."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

from hindsight.envs.base import (
    DataMissing,
    Demonstration,
    DemoStep,
    EnvError,
    EnvFamily,
    Observation,
    StepResult,
    TextEnv,
    Verdict,
)
from hindsight.envs.tasks import Manifest, TaskSpec

IMPORTED_IN = os.getpid()  # slots forked from one server share it: the module was imported once


def task(name: str = "count", **data: Any) -> TaskSpec:
    return TaskSpec(id=name, env="toy", kind="count", split="train", data=data)


class ToyEnv(TextEnv):
    def __init__(self) -> None:
        super().__init__(max_turns=1000)
        self.handle = threading.Lock()  # as unpicklable as a loaded library

    def _reset(self, task: TaskSpec) -> Observation:
        time.sleep(task.data.get("slow", 0.0))
        if task.data.get("broken"):
            raise EnvError("no such game")
        if missing := task.data.get("missing"):
            raise DataMissing(missing)
        self.task, self.count = task, 0
        return Observation(text=f"{task.id} 0", actions=("add",))

    def _step(self, action: str) -> StepResult:
        verb, _, rest = action.partition(" ")
        feedback = str(getattr(self, f"_{verb}")(rest))
        self.count += 1
        done = self.count >= 100
        return StepResult(
            Observation(f"{self.task.id} {self.count}", ("add",)), feedback, float(done), done, False, done
        )

    def _finish(self) -> Verdict:
        return Verdict(self.count / 100, False, {"count": self.count})

    def reference(self, task: TaskSpec) -> list[str] | None:
        return ["add"] * 100

    def demonstrate(self, task: TaskSpec, seed: int, noise: float) -> Demonstration:
        first = self.reset(task)
        return Demonstration(task, first, (DemoStep(first, "add", "add", self.step("add")),), False)

    def _add(self, _: str) -> str:
        return "added"

    def _pid(self, _: str) -> int:
        return os.getpid()

    def _variable(self, name: str) -> str:
        return os.environ.get(name, "absent")

    def _origin(self, _: str) -> int:
        return IMPORTED_IN

    def _sleep(self, seconds: str) -> str:
        time.sleep(float(seconds))
        return "slept"

    def _spin(self, _: str) -> str:
        while True:
            pass

    def _raise(self, message: str) -> str:
        raise ValueError(message)

    def _exit(self, code: str) -> str:
        sys.exit(int(code))

    def _print(self, text: str) -> str:
        print(text * 1000)
        os.write(1, b"\x00\xffgarbage\n" * 1000)
        sys.stderr.write(text)
        return sys.stdin.read()

    def _child(self, _: str) -> int:
        return subprocess.Popen(["sleep", "600"]).pid

    def _leak(self, mebibytes: str) -> str:
        self.leaked = [*getattr(self, "leaked", []), bytearray(os.urandom(int(mebibytes) << 20))]
        return "leaked"

    def _big(self, size: str) -> str:
        return "x" * int(size)


class UnpicklableEnv(ToyEnv):
    def step(self, action: str) -> StepResult:
        class Local(Observation):
            """A class that no other process can import."""

        return replace(super().step("add"), observation=Local("here"))


@dataclass
class ToyFamily(EnvFamily):
    fail: str = ""  # message of the exception that `make` raises
    slow: float = 0.0  # seconds that `make` takes
    env: type[ToyEnv] = ToyEnv
    name: str = "toy"
    action_format: str = "tags"
    turn_limit: int = 100

    def manifest(self) -> Manifest:
        return Manifest(train=(task(),), evaluation=(task("held-out"),))

    def make(self) -> TextEnv:
        time.sleep(self.slow)
        if self.fail:
            raise EnvError(self.fail)
        return self.env()


class AskingFamily(ToyFamily):
    """One whose environment calls an endpoint."""

    secrets = ("TOY_API_KEY",)


class UnloadableFamily(ToyFamily):
    def __setstate__(self, state: object) -> None:
        raise ImportError("a library is missing")


class PreloadingFamily(ToyFamily):
    def preload(self) -> None:
        if self.fail:
            raise DataMissing(self.fail)
        global IMPORTED_IN
        IMPORTED_IN = -os.getpid()
