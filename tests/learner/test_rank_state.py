"""Training state on disk: what one division of it writes, any other reads to the bit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hindsight.learner.rank_state
from hindsight.learner.checkpoint import CheckpointError
from hindsight.learner.rank_state import MOMENTS, load_rank_state, rank_parts, save_rank_state

SHAPES = {"layer.weight": (5, 3), "layer.bias": (5,), "head.weight": (7, 5), "one": (1,)}


def values(seed):
    """Float32 weights and moments of a model, by kind and parameter."""
    torch.manual_seed(seed)
    return {
        kind: {name: torch.randn(shape) for name, shape in SHAPES.items()} for kind in ("master", *MOMENTS)
    }


def engines(ranks, stage, whole, step):
    """Each rank's stand-in of a DeepSpeed engine that holds its share of these values."""
    return [ENGINES[stage](ranks, rank, whole, step) for rank in range(ranks)]


def make(stage, step, module, optimizer, holders, moments):
    """`moments`: per holder, by kind; without steps Adam has none."""
    inner = optimizer.optimizer = SimpleNamespace(state={holder: {} for holder in holders})
    inner.param_groups = [{"params": holders}]
    for holder, own in zip(holders, moments, strict=True):
        if step:
            inner.state[holder] = {"step": torch.tensor(float(step)), **own}
    return SimpleNamespace(
        optimizer=optimizer,
        module=SimpleNamespace(named_parameters=lambda: list(module.items())),
        global_steps=step,
        zero_optimization_stage=lambda: stage,
    )


def low_precision(whole):
    return {
        name: torch.nn.Parameter(full.bfloat16(), requires_grad=True)
        for name, full in whole["master"].items()
    }


def replicated(ranks, rank, whole, step):
    module = low_precision(whole)
    holders = [full.clone() for full in whole["master"].values()]
    moments = [{kind: whole[kind][name].clone() for kind in MOMENTS} for name in SHAPES]
    optimizer = SimpleNamespace(fp32_groups=[holders], fp16_groups=[list(module.values())])
    return make(0, step, module, optimizer, holders, moments)


def flat(ranks, rank, whole, step):
    """ZeRO 1 and 2: one vector of all parameters, padded and cut into equal shares."""
    module, share = low_precision(whole), -(-sum(p.numel() for p in whole["master"].values()) // ranks)

    def cut(kind):
        row = torch.cat([*(full.flatten() for full in whole[kind].values()), torch.zeros(ranks)])
        return row[rank * share : (rank + 1) * share].clone()

    offset = 0
    for parameter in module.values():
        low, high = max(offset, rank * share), min(offset + parameter.numel(), (rank + 1) * share)
        parameter._hp_mapping = low < high and SimpleNamespace(
            param_group_index=0,
            lp_fragment_address=SimpleNamespace(start=low - offset, numel=high - low),
            hp_fragment_address=SimpleNamespace(start=low - rank * share, numel=high - low),
        )
        parameter._hp_mapping = parameter._hp_mapping or None
        offset += parameter.numel()
    optimizer = SimpleNamespace(update_lp_params=lambda: None)
    return make(2, step, module, optimizer, [cut("master")], [{kind: cut(kind) for kind in MOMENTS}])


def by_parameter(ranks, rank, whole, step):
    """ZeRO 3: each parameter is padded and cut into equal shares, which lie behind each other."""
    module = low_precision(whole)
    places, at = {}, 0
    for name, parameter in module.items():
        share = -(-parameter.numel() // ranks)
        parameter.ds_id, parameter.ds_numel, places[id(parameter)] = name, parameter.numel(), [0, at, share]
        at += share

    def cut(kind):
        rows = [torch.cat([full.flatten(), torch.zeros(ranks)]) for full in whole[kind].values()]
        shares = [-(-full.numel() // ranks) for full in whole[kind].values()]
        return torch.cat([row[rank * n : (rank + 1) * n] for row, n in zip(rows, shares, strict=True)])

    holder = cut("master")
    optimizer = SimpleNamespace(
        grad_position=places,
        get_param_id=id,
        fp32_partitioned_groups_flat=[holder],
        checkpoint_event_prologue=lambda: None,
        checkpoint_event_epilogue=lambda: None,
        _reassign_or_swap_out_partitioned_parameters=lambda group: None,
    )
    return make(3, step, module, optimizer, [holder], [{kind: cut(kind) for kind in MOMENTS}])


ENGINES = {0: replicated, 2: flat, 3: by_parameter}
divisions = st.tuples(st.integers(1, 4), st.sampled_from([0, 2, 3]))


def held(made):
    """What all ranks hold together, by kind and parameter."""
    found = values(0)
    for rank, engine in enumerate(made):
        for part in rank_parts(engine, rank):
            state = engine.optimizer.optimizer.state[part.holder]
            for kind, whole in {"master": part.holder, **{kind: state[kind] for kind in MOMENTS}}.items():
                found[kind][part.name].view(-1)[part.start : part.start + part.size] = part.of(whole)
    return found


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(divisions, divisions, st.sampled_from([0, 3]), st.integers(0, 3))
def test_any_division_reads_what_any_other_wrote(tmp_path_factory, before, after, step, stepped):
    folder, whole = tmp_path_factory.mktemp("state") / "learner", values(1)
    for rank, engine in enumerate(engines(*before, whole, step)):
        save_rank_state(engine, folder, rank, {"average": torch.arange(3.0)})
    target, average = engines(*after, values(2), stepped), torch.zeros(3)
    for rank, engine in enumerate(target):
        load_rank_state(engine, folder, rank, {"average": average})
        assert engine.global_steps == step
        assert {float(state["step"]) for state in engine.optimizer.optimizer.state.values()} == {step}
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    expected = whole if step else whole | dict.fromkeys(MOMENTS, zeros)
    found = held(target)
    assert all(torch.equal(found[kind][name], expected[kind][name]) for kind in found for name in SHAPES)
    assert average.tolist() == [0, 1, 2]


def test_large_states_are_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(hindsight.learner.rank_state, "FILE_BYTES", 100)
    [engine] = engines(1, 2, values(1), 3)
    save_rank_state(engine, tmp_path / "learner", 0, {})
    assert len(list((tmp_path / "learner").iterdir())) > 4
    [other] = engines(1, 3, values(2), 0)
    load_rank_state(other, tmp_path / "learner", 0, {})
    assert torch.equal(held([other])["exp_avg"]["head.weight"], values(1)["exp_avg"]["head.weight"])


def test_the_state_of_another_model_is_refused(tmp_path):
    for rank, engine in enumerate(engines(2, 2, values(1), 3)):
        save_rank_state(engine, tmp_path / "learner", rank, {})
    (tmp_path / "learner/rank1-0.safetensors").unlink()
    [engine] = engines(1, 3, values(2), 0)
    with pytest.raises(CheckpointError, match=r"has \d+ elements of head.*the model trains 35: keep"):
        load_rank_state(engine, tmp_path / "learner", 0, {})
    with pytest.raises(CheckpointError, match="lacks average: keep the settings"):
        load_rank_state(engine, tmp_path / "learner", 0, {"average": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="has no training state"):
        load_rank_state(engine, tmp_path / "nothing", 0, {})


def test_the_model_gets_the_float32_weights_in_its_own_type(tmp_path):
    [engine], [other] = engines(1, 0, values(1), 3), engines(1, 0, values(2), 0)
    save_rank_state(engine, tmp_path / "learner", 0, {})
    load_rank_state(other, tmp_path / "learner", 0, {})
    for name, parameter in other.module.named_parameters():
        assert torch.equal(parameter, values(1)["master"][name].bfloat16())
