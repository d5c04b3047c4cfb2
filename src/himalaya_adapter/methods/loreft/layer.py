"""What stands in for an adapted decoder layer: the layer, then an edit of the hidden states that it returns."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from .config import LoReftConfig


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


class LoReftLayer(nn.Module, BaseTunerLayer):
    r"""Adds :math:`R^\top (W h + b - R h)` to the hidden states that ``base_layer`` returns.

    ``loreft_R`` holds any matrix of full rank, R being made of it by Gram-Schmidt in every pass: whatever an optimiser
    does, R keeps orthonormal rows. ``loreft_W`` and ``loreft_b`` are the paper's W and b. All are kept in 32 bits.

    The edit follows the layer's output, where there is no weight, so it cannot be merged. Hidden states that
    transformers records (``output_hidden_states``) are those before the edit of the layer that they come from.
    """

    adapter_layer_names = ("loreft_R", "loreft_W", "loreft_b")
    other_param_names = ("first_positions",)
    if TYPE_CHECKING:  # what PEFT's mix-in brings
        active_adapters: list[str]
        disable_adapters: bool
        get_base_layer: Callable[[], nn.Module]
        _cast_input_dtype: Callable[[Tensor, torch.dtype], Tensor]

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
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

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base layer and add the edits; a tuple's first element is the one that is edited.

        Raises:
            ValueError: Only the first positions are to be edited, and the model does not pass positions to its layers.
        """
        result = self.base_layer(*args, **kwargs)
        if self.disable_adapters:
            return result
        hidden_states = result[0] if isinstance(result, tuple) else result
        output = hidden_states
        for name in self.active_adapters:
            if name in self.loreft_R:
                output = output + self._edit(name, hidden_states, kwargs).to(output.dtype)
        return (output, *result[1:]) if isinstance(result, tuple) else output

    def _edit(self, name: str, hidden_states: Tensor, inputs: dict[str, Any]) -> Tensor:
        weight, bias = self.loreft_W[name], self.loreft_b[name]
        edit = subspace_edit(self._cast_input_dtype(hidden_states, weight.dtype), self.rotation(name), weight, bias)
        most = self.first_positions[name]
        if most is None:
            return edit
        if inputs.get("position_ids") is None:
            raise ValueError(
                f"first_positions={most} needs a model that passes position_ids to its layers; "
                f"{type(self.get_base_layer()).__name__} got none: leave first_positions out"
            )
        return edit * (inputs["position_ids"] < most).unsqueeze(-1)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Not possible.

        Raises:
            NotImplementedError: Always; the message says why.
        """
        raise NotImplementedError(
            "LoReFT cannot be merged: it edits hidden states after a layer, where there is no weight to add it to. "
            "Keep the adapter attached; unload() gives the base model back."
        )

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, None]:
        # A decoder layer has no weight of its own to ask. No dtype: in 16 bits R's rows would not be orthonormal.
        parameter = next(base_layer.parameters(), None)
        return None if parameter is None else parameter.device, None
