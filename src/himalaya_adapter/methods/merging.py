r"""Merging a static update into the weight of the linear module that it belongs to: :math:`W + \Delta W`, and back."""

import warnings
from abc import abstractmethod

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from himalaya_adapter.errors import HimalayaError

from .targets import TargetLayer


class MergeableLayer(TargetLayer):
    """A layer whose adapters, each an update of its weight, can become part of that weight.

    The layer of a method says with `get_delta_weight` what that update is.
    """

    @abstractmethod
    def get_delta_weight(self, name: str) -> Tensor:
        """The update of the weight by adapter ``name``, ``(out, in)``."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters' updates to the base layer's weight.

        Args:
            safe_merge: First check that the merged weight is finite.
            adapter_names: Which adapters; the active ones by default.

        Raises:
            NotImplementedError: The weight is quantised.
            ValueError: With ``safe_merge``, a merged weight would not be finite; the weight is as it was.
        """
        if self.quantization_backend is not None:
            raise NotImplementedError(
                f"merging into a quantised weight ({self.quantization_backend.backend_name}) would round the update "
                "away: keep the adapter attached, or merge it into the model loaded without quantisation"
            )
        for name in check_adapters_to_merge(self, adapter_names):
            if self._has(name):
                merged = self._delta(name) + self._weight()
                if safe_merge and not merged.isfinite().all():
                    # In PEFT's words.
                    raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
                self._weight().copy_(merged)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take the merged updates out of the base layer's weight, to rounding."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            self._weight().sub_(self._delta(self.merged_adapters.pop()))

    def _has(self, name: str) -> bool:
        return name in getattr(self, self.adapter_layer_names[0])

    def _weight(self) -> Tensor:
        weight = self.get_base_layer().weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    def _delta(self, name: str) -> Tensor:
        with torch.no_grad():
            return self.get_delta_weight(name).to(self._weight())


def refuse_if_merged(model: nn.Module, wanted: str) -> None:
    """Make sure that no adapter is merged before its task changes.

    Args:
        model: The adapted model.
        wanted: The call that would change the task, such as ``set_task('a')``.

    Raises:
        HimalayaError: An adapter is merged: the weights are those of its task.
    """
    if any(isinstance(module, MergeableLayer) and module.merged for module in model.modules()):
        raise HimalayaError(f"the adapter is merged as it is for one task: unmerge it before {wanted}")
