"""Checks and rates of one GPU, each part in a process of its own with its own limit.

    python -m benchmarks.gpu all --out DIR [--parts versions,teacher,...] [--small]
    python -m benchmarks.gpu PART --out DIR [--small]      (one part, in this process)

Every result is a line of JSON, printed and appended to DIR/gpu.jsonl; at the end, DIR/rates.yaml has the
rates for `hindsight plan --rates`. `--small` rehearses the same code with tiny shapes, on the CPU where there
is no GPU. Models have random weights, but for smollm2's.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from benchmarks.gpu_engine import engine, raw
from benchmarks.gpu_parts import Run, finished, learner, model, teacher
from benchmarks.gpu_rates import write_rates

from hindsight.configs.environ import apply
from hindsight.configs.paths import SOURCE

LIMITS = {  # seconds, cheapest part first
    "versions": 60,
    "ceilings": 40,
    "teacher": 60,
    "learner": 90,
    "teacher7b": 90,
    "learner7b": 90,
    "engine": 150,
    "raw": 90,
    "graphs": 150,
    "nano": 240,
    "smollm2": 420,
}
SLOWER = 6  # times the limit, with --small on a CPU
PACKAGES = "torch triton transformers tokenizers numpy ray deepspeed vllm omegaconf gymnasium alfworld peft"
MODULES = "rollout.engine learner.group learner.weight_sync teacher.scorer cluster.train"
TINY_RUN = [
    *("steps=1", "env.train_tasks=4", "env.eval_tasks=1", "env.max_turns=4", "env.slots=2", "sft.demos=2"),
    *("sft.epochs=1", "rollout.num_groups=1", "rollout.group_size=2", "rollout.max_tokens=8"),
    *("evaluate.episodes=1", "evaluate.cold_episodes=1"),
]


def versions(run: Run) -> None:
    """Whether everything can be imported, and what the machine has."""
    import importlib

    import torch

    names = [*PACKAGES.split(), *(f"hindsight.{name}" for name in MODULES.split())]
    found = {}
    for name in names:
        try:
            found[name] = getattr(importlib.import_module(name), "__version__", "imported")
        except (ImportError, OSError, RuntimeError) as error:
            found[name] = f"{type(error).__name__}: {error}"[:200]
    run.emit(python=sys.version.split()[0], packages=found)
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        run.emit(gpu=card.name, gib=round(card.total_memory / 2**30, 1), sms=card.multi_processor_count)
    free = {name: shutil.disk_usage(name).free >> 30 for name in ("/dev/shm", "/tmp")}
    run.emit(cpus=os.cpu_count(), free_gib=free, glibc=os.confstr("CS_GNU_LIBC_VERSION"))


def ceilings(run: Run) -> None:
    """The rates that the others are compared with: matrices, copies, to the host and back."""
    import torch

    size, count = (512, 2**20) if run.small else (8192, 2**32)

    def seconds(work: Callable[[], object], repeats: int = 10) -> float:
        for _ in range(3):
            work()
        finished()
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        finished()
        return (time.perf_counter() - began) / repeats

    a, b = (torch.randn(size, size, device=run.device, dtype=torch.bfloat16) for _ in range(2))
    big = torch.empty(count, dtype=torch.uint8, device=run.device).random_()
    part = big[: min(count, 2**30)]
    host = torch.empty(part.numel(), dtype=torch.uint8)
    run.emit(
        matmul_tflops=round(2 * size**3 / seconds(lambda: a @ b) / 1e12, 3),
        copy_tb_s=round(2 * count / seconds(lambda: big.clone()) / 1e12, 4),
        host_to_device_gb_s=round(part.numel() / seconds(lambda: part.copy_(host), 3) / 1e9, 2),
        device_to_host_gb_s=round(part.numel() / seconds(lambda: host.copy_(part), 3) / 1e9, 2),
    )


def train(run: Run, recipe: str, *settings: str) -> bool:
    """`hindsight train` on one GPU, or on the CPU; whether it ran to its end."""
    folder = run.scratch / "runs" / run.part
    shutil.rmtree(folder, ignore_errors=True)
    where = "none" if run.device == "cpu" else "required"
    own = [f"out={folder}", f"cluster.gpus={where}", "cluster.dashboard_port=0", "cluster.start_timeout=200"]
    tiny = TINY_RUN if run.small else ["steps=2"]
    began = time.perf_counter()
    command = [sys.executable, "-m", "hindsight", "train", recipe, *own, *tiny, *settings]
    done = subprocess.run(command, capture_output=True, text=True)
    (run.out / f"{run.part}.train.txt").write_text(f"{done.stdout}\n== stderr ==\n{done.stderr}")
    if (folder / "metrics.jsonl").exists():
        shutil.copy(folder / "metrics.jsonl", run.out / f"{run.part}.metrics.jsonl")
    tail = (done.stdout + done.stderr)[-2500:]
    run.emit(settings=settings, rc=done.returncode, seconds=round(time.perf_counter() - began, 1), tail=tail)
    return done.returncode == 0


def nano(run: Run) -> None:
    """Steps of the random model: in float32, for which vLLM has an attention kernel of its own."""
    if not train(run, "nano") and not train(run, "nano", "model.dtype=bfloat16"):
        raise SystemExit(1)


def smollm2(run: Run) -> None:
    """Steps of SmolLM2-135M on ALFWorld."""
    from hindsight.rollout.models import resolve

    began = time.perf_counter()
    folder = resolve("smollm2-135m")
    run.emit(model=folder, seconds=round(time.perf_counter() - began, 1))
    if not train(run, "alfworld"):
        raise SystemExit(1)


def every(run: Run, parts: list[str]) -> bool:
    """Each part in a process of its own; whether all ended well."""
    fine = True
    folders = [str(Path(__file__).parents[1]), SOURCE, os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    for part in parts:
        began, log = time.perf_counter(), run.out / f"{part}.log"
        command = [sys.executable, "-m", "benchmarks.gpu", part, "--out", str(run.out)]
        limit = LIMITS[part] * (SLOWER if run.small else 1)
        with log.open("w") as file:
            process = subprocess.Popen(
                [*command, *["--small"] * run.small],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        ended: object
        try:
            ended = process.wait(limit)
        except subprocess.TimeoutExpired:
            ended = f"not done within {limit} s"
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it left
        process.wait()
        text = log.read_text(errors="replace")
        print("\n".join(line for line in text.splitlines() if line.startswith('{"part"')), flush=True)
        if ended != 0:
            fine = False
            print(f"--- {part} ended with {ended}; the end of its log:\n{text[-3500:]}", flush=True)
        Run(part, run.out, run.small).emit(ended=ended, seconds=round(time.perf_counter() - began, 1))
    return fine


def main(
    part: Annotated[str, typer.Argument(help=f"all, or one of {', '.join(LIMITS)}")],
    parts: Annotated[str, typer.Option(help="of all, comma-separated")] = ",".join(LIMITS),
    out: Annotated[Path, typer.Option(help="folder for gpu.jsonl and logs")] = Path("."),
    small: Annotated[bool, typer.Option("--small", help="tiny shapes")] = False,
) -> None:
    """Run one part here, or several one after another."""
    apply()
    known: dict[str, Callable[[Run], None]] = {
        **{"versions": versions, "ceilings": ceilings, "nano": nano, "smollm2": smollm2, "model": model},
        **{"teacher": teacher, "teacher7b": teacher, "learner": learner, "learner7b": learner},
        **{"engine": engine, "raw": raw, "graphs": raw},
    }
    wanted = [part] if part != "all" else parts.split(",")
    if wrong := [name for name in wanted if name not in known]:
        raise typer.BadParameter(f"{', '.join(wrong)}: the parts are {', '.join(LIMITS)}")
    out.mkdir(parents=True, exist_ok=True)
    if part != "all":
        known[part](Run(part, out.resolve(), small))
        return
    fine = every(Run("all", out.resolve(), small), wanted)
    if not small and (file := write_rates(out)):
        print(f"rates for `hindsight plan --rates`: {file}")
    if not fine:
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
