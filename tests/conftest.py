"""A real tokenizer and tiny Llama models with random weights, for tests that must not touch the network."""

from __future__ import annotations

import gc
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes: threads of their own would be in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pytest

if TYPE_CHECKING:  # the process that only hands tests out to others starts without torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# PEFT writes a model card beside every checkpoint, from a template that it compiles each time.
jinja2.Environment.compile = cache(jinja2.Environment.compile)

TOKENIZER_TEXTS = [
    "Question: what colour is the sky?\nAnswer: blue",
    "Is it so? yes no maybe so. Was it so? yes no maybe so.",
    "Text: the film was good, the play was bad.\nSentiment: positive negative neutral",
    "Der Hund schläft auf dem großen Sofa, die Katze auf dem kleinen.",
    "Кошка сидит на окне и смотрит на птиц.",
    "def add(x, y):\n    return x + y\n\nfor i in range(10):\n    print(i)\n",
]
TOKENIZER_SIZE = 384


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: item.path.parent.name != "training")


def pytest_collection_finish() -> None:
    """What was imported is nobody's to free, and every Trainer would search through all of it for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 300 to 384 tokens over a few sentences, with EOS and padding and no BOS (as SmolLM2)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_SIZE,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TOKENIZER_TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")


@pytest.fixture
def only_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the only place where pip may look for packages. The cache is empty."""
    monkeypatch.setenv("HIMALAYA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "upstream"))
    (tmp_path / "upstream").mkdir()
    return tmp_path / "upstream"


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., LlamaForCausalLM]:
    """A function that builds a fresh random Llama: ``tiny_model(seed=0, **changes_to_the_config)``.

    Two layers, hidden size 64, 4 heads over 2 key-value heads, the vocabulary of ``tiny_tokenizer``, float32, in
    evaluation mode. The same seed gives the same weights.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def build(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
        settings = {
            "vocab_size": len(tiny_tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "eos_token_id": tiny_tokenizer.eos_token_id,
            "pad_token_id": tiny_tokenizer.pad_token_id,
            "bos_token_id": None,
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(LlamaConfig(**settings | changes)).eval()

    return build


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[..., LlamaForCausalLM],
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> Path:
    """A folder of the module's own with what `tiny_runs.run_words` needs: a tiny backbone and a stream."""
    from tiny_runs import write_backbone, write_stream

    folder = tmp_path_factory.mktemp("place")
    write_backbone(folder / "backbone", tiny_model, tiny_tokenizer)
    write_stream(folder)
    return folder
