"""Which variables are secrets, and who has them."""

from __future__ import annotations

import os
import sys

import pytest

from hindsight.configs.environ import (
    CORE_SHARE,
    Named,
    actor_environment,
    actor_name_variable,
    apply_in_worker,
    everywhere,
    of_this_node,
    public,
    secrets,
    without_secrets,
)
from hindsight.configs.schema import Config
from hindsight.rollout.engine import engine_env

SECRET = (
    "OPENAI_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HINDSIGHT_USER_KEY",
    "MY_APIKEY",
    "db_password",
    "PGPASSWORD",
    "MYSQL_PWD",
    "SSH_AUTH_SOCK",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "RAY_AUTH_TOKEN",
)
PUBLIC = (
    "PATH",
    "HOME",
    "LANG",
    "TOKENIZERS_PARALLELISM",
    "HINDSIGHT_CACHE",
    "ALFWORLD_DATA",
    "APPWORLD_ROOT",
    "KEYBOARD",
    "MONKEY",
    "AUTHOR",
    "CUDA_VISIBLE_DEVICES",
    "NCCL_SOCKET_IFNAME",
    "OMP_NUM_THREADS",
    "AWS_REGION",
)


def test_secrets_are_known_by_their_name_or_by_a_password_in_an_address() -> None:
    assert secrets(dict.fromkeys((*SECRET, *PUBLIC), "value")) == {*SECRET}
    addresses = {
        "PIP_INDEX_URL": "https://me:pw@packages.example/simple",
        "HTTPS_PROXY": "http://:pw@proxy.example:3128",
        "NO_PROXY": "localhost",
        "HTTP_PROXY": "http://proxy.example:3128",
        "MAIL": "me@example.com",
    }
    assert secrets(addresses) == {"PIP_INDEX_URL", "HTTPS_PROXY"}
    assert public({"PATH": "/bin", "HF_TOKEN": "hf"}) == {"PATH": "/bin"}


def test_no_variable_that_a_process_of_a_run_needs_is_taken_for_a_secret() -> None:
    assert not secrets(everywhere() | of_this_node() | {CORE_SHARE: "1"})


def test_an_actor_has_the_threads_path_and_environment_of_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    given = actor_environment()  # by a driver on another node
    assert not {"OMP_NUM_THREADS", "PATH", "TORCH_EXTENSIONS_DIR"} & {*given}
    for share, cores, threads in ((1.0, 8, "8"), (0.125, 64, "8"), (0.125, 4, "1"), (0.25, 6, "1")):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        monkeypatch.setattr(os, "environ", {"PATH": "/node/bin", CORE_SHARE: str(share)})
        apply_in_worker()
        assert os.environ["OMP_NUM_THREADS"] == threads
        assert os.environ["PATH"] == f"{sys.prefix}/bin:/node/bin"
        assert os.environ["TORCH_EXTENSIONS_DIR"].startswith(sys.prefix)
    assert CORE_SHARE not in actor_environment(threads=3)
    monkeypatch.setattr(os, "environ", actor_environment(threads=3))  # a setting holds on every node
    apply_in_worker()
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_actors_get_none_of_this_processs_secrets_but_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ray")
    for given in (actor_environment(), engine_env(Config())):
        assert given["OPENAI_API_KEY"] == ""
        assert "RAY_AUTH_TOKEN" not in given


def test_ray_starts_without_secrets_and_this_process_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ray")
    before = dict(os.environ)
    with pytest.raises(KeyError), without_secrets():
        assert "OPENAI_API_KEY" not in os.environ and os.environ["RAY_AUTH_TOKEN"] == "ray"
        raise KeyError("whatever happens meanwhile")
    assert os.environ == before


def test_an_actor_is_called_by_its_role_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray shows what `repr` gives once the actor is made."""

    class Engine(Named):
        pass

    assert "Engine object" in repr(Engine())  # outside an actor
    for name, value in actor_name_variable("engine", 1).items():
        monkeypatch.setenv(name, value)
    assert repr(Engine()) == "engine-1"
