"""What stands in for an adapted module: a decoder layer whose output is edited."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from himalaya_adapter.methods.output_layer import OutputLayer
from himalaya_adapter.methods.targets import TargetLayer

from .adapter import HimalayaAdapter
from .update import edited


class HimalayaLayer(TargetLayer):
    """What the layers of both placements have in common."""

    other_param_names: tuple[str, ...] = ("number",)
    shared: dict[str, HimalayaAdapter]

    def __init__(self, base_layer: nn.Module, **options: Any) -> None:
        super().__init__(base_layer, **options)
        self.number: dict[str, int] = {}  # of the layer, in each adapter


class StreamLayer(OutputLayer, HimalayaLayer):
    """Adds :math:`r_l (v_l^T h)` to the output ``h`` of ``base_layer``, for every active adapter.

    It owns no parameter.
    """

    no_weight = (
        "the update follows the layer's output, where there is no weight to merge it into: keep the adapter attached, "
        "or learn the tasks with placement='weights', which merges exactly"
    )

    def edited(
        self, name: str, output: Tensor, original: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Tensor:
        """Edit the output as an adapter's task asks."""
        return edited(output, *self.shared[name].of_layer(self.number[name], output))
