"""The cluster examples, as far as they can be checked without one: syntax, fields, their command."""

from __future__ import annotations

import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path

import yaml

from hindsight.configs.check import check
from hindsight.configs.load import load

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "cluster"


def test_the_job_of_kubernetes() -> None:
    job = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    program, command, recipe, *overrides = shlex.split(job["spec"]["entrypoint"])
    assert (program, command) == ("hindsight", "train") and "resume=auto" in overrides
    assert check(load(recipe, [*overrides, "out=run"])) == []
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == version("ray")
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        [container] = group["template"]["spec"]["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert any(one["name"] == "HINDSIGHT_CACHE" for one in container["env"])
    for group in cluster["workerGroupSpecs"]:
        assert {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams"} <= set(group)


def test_the_batch_script() -> None:
    subprocess.run(["bash", "-n", FOLDER / "slurm.sh"], check=True)
    text = (FOLDER / "slurm.sh").read_text()
    assert 'hindsight train "$@" resume=auto --address "$address"' in text and "#SBATCH --requeue" in text


def test_the_image_is_set_up_as_the_readme_says() -> None:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    assert any("VARIANT=gpu scripts/setup" in line for line in lines)
    assert lines[1].startswith("FROM python:3.11")
