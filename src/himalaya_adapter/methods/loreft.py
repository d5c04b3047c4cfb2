"""LoReFT: low-rank linear-subspace representation finetuning (Wu et al. 2024, arXiv:2404.03592)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftType
from torch import Tensor, nn
from torch.nn.functional import linear

from himalaya_adapter.backbones.shape import hidden_width

from .linear_delta import LLAMA_LIKE
from .output_layer import OutputLayer
from .targets import TargetsConfig, TargetsModel


@dataclass
class LoReftConfig(TargetsConfig):
    """
    Configuration of a [`LoReftModel`], which edits the hidden states after decoder layers in a subspace of rank `r`.
    Beside the fields of [`TargetsConfig`]:

    Args:
        r (`int`):
            Dimensions of the edited subspace. A layer costs `r * (2 * width + 1)` parameters. The paper uses 1 to 8.
            Start from 8.
        first_positions (`int`, *optional*):
            Edit only the first so many tokens of a text, those whose `position_ids` are below it; by default all
            tokens. The paper edits the first and the last tokens of the *prompt*. Where a prompt ends cannot be seen
            from a model's inputs: a pass in training holds prompt and answer, a pass of generation without a cache
            holds the prompt and what has been generated so far. So the last positions are not on offer: which tokens
            are edited must not depend on how a text is fed to the model.
        target_modules (`list[str] | str`, *optional*):
            The modules whose output is edited: one regular expression that ends in the layer's number, or names. By
            default all decoder layers.
        init_weights (`bool`):
            `True`: W starts as R, so a fresh adapter is an exact no-op. `False`: W and b start at random, as in the
            paper.

    Raises:
        ValueError: If a value is outside its range; the message names field, value and range.
    """

    r: int = 8
    first_positions: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.LOREFT
        if self.first_positions is not None and self.first_positions < 1:
            raise ValueError(f"first_positions={self.first_positions} must be at least 1, or null for all tokens")


def orthonormal_rows(matrix: Tensor) -> Tensor:
    """The orthonormal rows that Gram-Schmidt makes of the rows of ``matrix``, ``(r, d)``; differentiable.

    By a QR factorisation of the transpose, in at least 32 bits. The signs are those that make the triangular factor's
    diagonal positive, so that the result moves continuously with ``matrix``.
    """
    wide = matrix if matrix.dtype == torch.float64 else matrix.float()
    directions, triangle = torch.linalg.qr(wide.T)
    return (directions * triangle.diagonal().sign()).T.to(matrix.dtype)


def subspace_edit(hidden_states: Tensor, rotation: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    r"""What LoReFT adds to hidden states: :math:`R^\top (W h + b - R h)` (Wu et al. 2024, equation 2).

    It is computed as :math:`R^\top ((W - R) h + b)`: for ``W`` equal to ``R`` and ``b = 0`` that is exactly 0, which
    :math:`W h - R h` is only where two matrix products round alike.

    Args:
        hidden_states: ``(..., d)``.
        rotation: R, ``(r, d)``, with orthonormal rows.
        weight: W, ``(r, d)``.
        bias: b, ``(r,)``.
    """
    return linear(linear(hidden_states, weight - rotation, bias), rotation.T)


class LoReftLayer(OutputLayer):
    r"""Adds :math:`R^\top (W h + b - R h)` to the hidden states that ``base_layer`` returns.

    ``loreft_R`` holds any matrix of full rank, R being made of it by Gram-Schmidt in every pass: whatever an optimiser
    does, R keeps orthonormal rows. ``loreft_W`` and ``loreft_b`` are the paper's W and b. All are kept in 32 bits.
    """

    adapter_layer_names = ("loreft_R", "loreft_W", "loreft_b")
    other_param_names = ("first_positions",)
    no_weight = (
        "LoReFT cannot be merged: it edits hidden states after a layer, where there is no weight to add it to. "
        "Keep the adapter attached; unload() gives the base model back."
    )

    def __init__(self, base_layer: nn.Module, **_: Any) -> None:
        super().__init__(base_layer)
        self.loreft_R = nn.ParameterDict()
        self.loreft_W = nn.ParameterDict()
        self.loreft_b = nn.ParameterDict()
        self.first_positions: dict[str, int | None] = {}

    def add_adapter(self, name: str, config: LoReftConfig, width: int) -> None:
        """Make what the layer owns of an adapter.

        Args:
            name: The adapter's.
            config: Its configuration.
            width: Width of the hidden states.

        Raises:
            ValueError: More directions are asked for than the hidden states have dimensions.
        """
        if config.r > width:
            raise ValueError(f"r={config.r} exceeds {width}, the width of the hidden states")
        device, _ = self._get_base_layer_device_and_dtype(self.get_base_layer())
        rotation = nn.init.orthogonal_(torch.empty(config.r, width, device=device))
        weight, bias = orthonormal_rows(rotation), torch.zeros(config.r, device=device)
        if not config.init_weights:
            weight, bias = torch.randn_like(weight) / width**0.5, torch.randn_like(bias)
        self.loreft_R[name] = nn.Parameter(rotation)
        self.loreft_W[name] = nn.Parameter(weight)
        self.loreft_b[name] = nn.Parameter(bias)
        self.first_positions[name] = config.first_positions

    def rotation(self, adapter_name: str) -> Tensor:
        """R of an adapter, ``(r, d)``, with orthonormal rows."""
        return orthonormal_rows(self.loreft_R[adapter_name])

    def edited(
        self, name: str, output: Tensor, original: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Tensor:
        """Add an adapter's edit.

        Raises:
            ValueError: Only the first positions are to be edited, and the model does not pass positions to its layers.
        """
        weight, bias = self.loreft_W[name], self.loreft_b[name]
        edit = subspace_edit(self._cast_input_dtype(original, weight.dtype), self.rotation(name), weight, bias)
        most = self.first_positions[name]
        if most is not None:
            if kwargs.get("position_ids") is None:
                raise ValueError(
                    f"first_positions={most} needs a model that passes position_ids to its layers; "
                    f"{type(self.get_base_layer()).__name__} got none: leave first_positions out"
                )
            edit = edit * (kwargs["position_ids"] < most).unsqueeze(-1)
        return output + edit.to(output.dtype)


class LoReftModel(TargetsModel):
    """Wraps decoder layers with `LoReftLayer`, so that the residual stream is edited after each of them."""

    prefix = "loreft_"
    tuner_layer_cls = LoReftLayer
    target_module_mapping = {  # noqa: RUF012  (PEFT declares it so)
        **dict.fromkeys((*LLAMA_LIKE, "phi3", "gpt_neox", "opt"), r"(.*\.)?layers\.\d+"),
        "gpt2": r"(.*\.)?h\.\d+",
    }

    def _add_adapter(self, layer: LoReftLayer, name: str, config: PeftConfig) -> None:
        width = getattr(layer.get_base_layer(), "out_features", None)
        layer.add_adapter(name, config, hidden_width(self.model) if width is None else width)
