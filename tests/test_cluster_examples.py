"""The cluster examples, as far as they can be checked without one: syntax, fields, their command."""

from __future__ import annotations

import shlex
import subprocess
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from jsonschema import ValidationError

from hindsight.configs.check import check_config
from hindsight.configs.load import load_config

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "cluster"


def test_the_job_of_kubernetes() -> None:
    job = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    program, command, recipe, *overrides = shlex.split(job["spec"]["entrypoint"])
    assert (program, command) == ("hindsight", "train") and "resume=auto" in overrides
    assert check_config(load_config(recipe, [*overrides, "out=run"])) == []
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


def test_the_cluster_of_machines_with_ssh() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = yaml.safe_load((FOLDER / "ray.yaml").read_text())
    validate_config(prepare_config(deepcopy(cluster)))
    with pytest.raises(ValidationError, match="head_start_ray_command"):
        validate_config(prepare_config(deepcopy(cluster) | {"head_start_ray_command": []}))
    starts = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    assert all("ray stop" in command or "HINDSIGHT_CACHE=" in command for command in starts)
    subprocess.run(["bash", "-n", FOLDER / "submit.sh"], check=True)
    text = (FOLDER / "submit.sh").read_text()
    assert "ray job submit" in text and 'hindsight train "$recipe" resume=auto "$@"' in text


def test_the_batch_script() -> None:
    subprocess.run(["bash", "-n", FOLDER / "slurm.sh"], check=True)
    text = (FOLDER / "slurm.sh").read_text()
    assert 'hindsight train "$@" resume=auto --address "$address"' in text and "#SBATCH --requeue" in text


def test_the_image_is_set_up_as_the_readme_says() -> None:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    assert any("VARIANT=gpu scripts/setup" in line for line in lines)
    assert lines[1].startswith("FROM python:3.11")
