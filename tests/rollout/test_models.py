"""Embedded models load, their tokenizers are exact and thrifty; missing models say how to get them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from hindsight.rollout.models import SMOLLM2, ModelMissing, ModelUnfit, resolve
from hindsight.rollout.vocabulary import train_tokenizer

OBSERVATION = (
    "You arrive at cabinet 12. On the cabinet 12, you see a butterknife 1, a creditcard 2, and a soapbottle "
    "3. The fridge 1 is closed. Nothing happens.\n\nYour task is to: put a hot potato in countertop."
)


@pytest.fixture(scope="module")
def vocabulary():
    return train_tokenizer(2048)


def test_nano_loads_and_is_the_shape_it_says(nano: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(nano)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (128, 2, 2)
    assert config.max_position_embeddings == 32768 and config.tie_word_embeddings
    assert config.vocab_size == len(AutoTokenizer.from_pretrained(nano)) <= 2048
    assert model.dtype == torch.bfloat16


def test_nano_is_made_once_and_the_same_each_time(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve("nano") == nano
    monkeypatch.setenv("HINDSIGHT_CACHE", str(tmp_path))
    again = resolve("nano")
    assert again != nano and again.name == nano.name
    for file in sorted(nano.iterdir()):
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name
    assert [folder.name for folder in again.parent.iterdir()] == [nano.name]


def test_a_failure_leaves_no_half_made_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HINDSIGHT_CACHE", str(tmp_path))
    monkeypatch.setattr(
        "hindsight.rollout.models.train_tokenizer", lambda size: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        resolve("nano")
    assert list((tmp_path / "models").iterdir()) == []


def test_nano_speaks_chatml(nano: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(nano)
    messages = [{"role": "user", "content": "look"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\nlook<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer("<|im_start|><|im_end|>").input_ids == [1, 2]
    assert tokenizer.eos_token_id == 2


@given(st.text())
def test_any_text_comes_back(vocabulary, text: str) -> None:
    assert (
        vocabulary.decode(vocabulary.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
        == text
    )


@pytest.mark.parametrize(
    "text",
    [
        "cabinet",
        " countertop",
        "go to",
        " 7",
        "<action>",
        "</action>",
        "<think>",
        "</think>",
        " Nothing",
        " happens",
        " your",
    ],
)
def test_common_words_are_one_or_two_tokens(vocabulary, text: str) -> None:
    assert len(vocabulary.encode(text).ids) == len(text.split())


def test_observations_are_about_a_token_a_word(vocabulary) -> None:
    pieces = re.findall(r"[A-Za-z]+|[0-9.,:\n]", OBSERVATION)
    assert len(vocabulary.encode(OBSERVATION).ids) == len(pieces)


def test_smollm2_is_unpacked_whole() -> None:
    folder = resolve(SMOLLM2)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.num_parameters() == 134_515_008 and model.dtype == torch.bfloat16
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        answer = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids.input_ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


@pytest.mark.parametrize("name", ["nobody/nothing", "/no/such/folder", "no such name"])
def test_a_missing_model_says_how_to_get_it(name: str) -> None:
    with pytest.raises(ModelMissing, match="hf download"):
        resolve(name)


def test_a_folder_without_a_model_or_a_template_is_refused(nano: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="save_pretrained"):
        resolve(str(tmp_path))
    plain = tmp_path / "plain"
    shutil.copytree(nano, plain)
    assert resolve(str(plain)) == plain
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(ModelUnfit, match="chat template"):
        resolve(str(plain))
