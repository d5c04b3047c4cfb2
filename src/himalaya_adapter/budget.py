"""What a run's adapter costs, counted at its backbone's shape before any weight is fetched or loaded."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from himalaya_adapter.backbones.loading import DTYPES, native_dtype
from himalaya_adapter.backbones.shape import ShapeMode, empty_backbone
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.method_options import method_of
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.methods.construction import adapt, run_method
from himalaya_adapter.methods.himalaya import HimalayaConfig
from himalaya_adapter.methods.himalaya_strict import HimalayaStrictConfig
from himalaya_adapter.methods.packed_adapter import pack, trainable_parameters
from himalaya_adapter.methods.release import has_release

BYTES_PER_MB = 1_000_000
TOKENS = 128  # of the forward pass in which operations are counted
FILE_HEADER = "header"
EWC_PART, PACKED_PART = "ewc", "packed"
FISHER_DTYPE = torch.bfloat16  # of EWC's stored Fisher: its order of magnitude matters, not its third digit
LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
WRAPPERS = re.compile(r"^(base_model\.|model\.|[a-z_]+_shared\.|default\.)+")


@dataclass(frozen=True)
class Budget:
    """Parameters and bytes of one adapter.

    Args:
        trainable: Trainable parameters by part.
        stored: Bytes by part of what a run keeps. The parts of the adapter's file, with its header, add up to the
            file's size; what is stored in few bits, and EWC's file, are one part each.
        released: The same of the release file, for a method that has one.
        router: Parameters of HIMALAYA_STRICT's router, trained and frozen.
    """

    trainable: Mapping[str, int]
    stored: Mapping[str, int]
    released: Mapping[str, int] | None
    router: int | None


@dataclass(frozen=True)
class Operations:
    """Work of one forward pass.

    Args:
        products: Floating-point operations of matrix products; a multiplication and an addition count as two.
        elements: Numbers that all other operations read or write, whichever are more, operation by operation.
    """

    products: int
    elements: int


@dataclass(frozen=True)
class Work:
    """Operations of a backbone.

    Args:
        bare: Those of the backbone alone.
        adapted: Those of the backbone with the adapter; None if they depend on the values of weights.
    """

    bare: Operations
    adapted: Operations | None

    @property
    def overhead(self) -> float | None:
        """Operations that the adapter adds, relative to the backbone's matrix products."""
        if self.adapted is None:
            return None
        return (self.adapted.products - self.bare.products) / self.bare.products

    @property
    def element_overhead(self) -> float | None:
        """Numbers that the adapter touches outside matrix products, relative to the backbone's matrix products."""
        if self.adapted is None:
            return None
        return (self.adapted.elements - self.bare.elements) / self.bare.products


def count_budget(run: RunConfig) -> Budget:
    """Count parameters and bytes of a run's adapter, without weights and without its stream.

    Raises:
        HimalayaError: An unknown backbone or method, wrong options, a method that needs the weights to begin.
    """
    model = _empty_model(run, run_method(run), ShapeMode())
    config = model.active_peft_config
    trainable = _by_part((name, tensor.numel()) for name, tensor in trainable_parameters(model).items())
    stored = _kept_bytes(run, model)
    router, released = None, None
    if isinstance(config, HimalayaStrictConfig):
        state = model.base_model.himalaya_strict_shared["default"].state_dict()
        router = sum(tensor.numel() for name, tensor in state.items() if name.startswith("router."))
    if has_release(config):
        config.released = True  # what PEFT saves from now on is a release
        released = _file_bytes(model)
    return Budget(trainable, stored, released, router)


def count_work(run: RunConfig) -> Work:
    """Count the operations of a forward pass with a run's adapter, and without it, without weights.

    Raises:
        HimalayaError: As `count_budget`.
    """
    mode = ShapeMode()
    model = _empty_model(run, run_method(run), mode)
    with model.disable_adapter():
        bare = _operations(model, mode)
    model.requires_grad_(False)  # operations are those of inference
    if isinstance(model.active_peft_config, HimalayaConfig):
        model.set_task([None])  # which task answers cannot be seen without values; all cost the same
    try:
        _operations(model, mode)  # finds out what the layers share, which every later pass makes once
        return Work(bare, _operations(model, mode))
    except RuntimeError:  # what torch raises when values of a fake tensor are asked for, as WaveFT does in each pass
        return Work(bare, None)


def check_budget(run: RunConfig, adapter: PeftConfig) -> None:
    """Refuse a run that would keep more for its adapter than its own ``total_parameter_budget_mb``.

    Raises:
        HimalayaError: As said, or what `count_budget` raises.
    """
    if run.model.adapter.total_parameter_budget_mb is not None:
        kept = _kept_bytes(run, _empty_model(run, adapter, ShapeMode()))
        check_size(kept, run.model.adapter.total_parameter_budget_mb)


def check_size(stored: Mapping[str, int], budget_mb: float) -> None:
    """Refuse a file of more than ``budget_mb`` times 10^6 bytes.

    Args:
        stored: Bytes by part.
        budget_mb: The run's budget.
    """
    size = sum(stored.values())
    if size > budget_mb * BYTES_PER_MB:
        largest = max(stored, key=lambda part: stored[part])
        raise HimalayaError(
            f"the adapter takes {size / BYTES_PER_MB:.3g} MB ({stored[largest] / BYTES_PER_MB:.3g} of them {largest}),"
            f" model.adapter.total_parameter_budget_mb allows {budget_mb:g}: lower the adapter's sizes or raise the"
            " budget"
        )


def _empty_model(run: RunConfig, adapter: PeftConfig, mode: ShapeMode) -> PeftModel:
    dtype = native_dtype() if run.model.backbone.dtype == "auto" else DTYPES[run.model.backbone.dtype]
    backbone = empty_backbone(run.model.backbone.name, dtype, mode)
    try:
        return adapt(backbone, adapter, run.training.seed).eval()
    except RuntimeError as error:  # among them what torch raises when values of a fake tensor are asked for
        raise HimalayaError(
            f"what method {method_of(run)} with these options costs cannot be counted without the backbone's "
            "weights; a run of it may need model.adapter.total_parameter_budget_mb=null"
        ) from error


def _kept_bytes(run: RunConfig, model: PeftModel) -> dict[str, int]:
    """Bytes by part of what a run keeps after a task: the adapter in its bits and, if it is on, EWC's Fisher."""
    adapter, trainable = run.model.adapter, trainable_parameters(model)
    if adapter.bits is None:
        kept = _file_bytes(model)
    else:
        shapes = {name: torch.empty(tensor.shape, device="meta") for name, tensor in trainable.items()}
        kept = {PACKED_PART: _file_size(pack(shapes, adapter.bits))}
    if adapter.ewc_lambda is not None:
        kept[EWC_PART] = _file_size({name: tensor.to(FISHER_DTYPE) for name, tensor in trainable.items()})
    return kept


def _file_bytes(model: PeftModel) -> dict[str, int]:
    """Bytes of ``adapter_model.safetensors`` by part."""
    state = get_peft_model_state_dict(model)
    parts = _by_part((name, tensor.nbytes) for name, tensor in state.items())
    return {FILE_HEADER: _file_size(state, {"format": "pt"}) - sum(parts.values())} | parts


def _file_size(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> int:
    """Bytes of a safetensors file, of zeros in the place of what has a shape and no values."""
    zeros = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()}
    return len(save(zeros, metadata=metadata))


def _by_part(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Sizes summed over the layers, by what remains of a tensor's name without PEFT's wrappers."""
    parts: Counter[str] = Counter()
    for name, size in sizes:
        parts[WRAPPERS.sub("", LAYER_NUMBER.sub("*", name)).replace(".default", "")] += size
    return dict(parts)


def _operations(model: PeftModel, mode: ShapeMode) -> Operations:
    with torch.no_grad(), mode:
        tokens = torch.zeros(1, TOKENS, dtype=torch.int64)
        with FlopCounterMode(display=False) as products, ElementCounter() as elements:
            model(input_ids=tokens)
    return Operations(products.get_total_flops(), elements.total)


class ElementCounter(TorchDispatchMode):
    """Counts what `FlopCounterMode` leaves out: the numbers that operations other than matrix products touch."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        if operation._overloadpacket not in flop_registry and not operation.is_view:
            tensors = (leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor))
            self.total += max((tensor.numel() for tensor in tensors), default=0)
        return result
