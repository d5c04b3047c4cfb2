"""A merged adapter is part of the weights: its task can no longer change."""

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from himalaya_adapter.errors import HimalayaError


def is_merged(model: nn.Module) -> bool:
    """Whether an adapter is merged."""
    return any(isinstance(module, BaseTunerLayer) and module.merged for module in model.modules())


def refuse_if_merged(model: nn.Module, wanted: str) -> None:
    """Make sure that no adapter is merged before its task changes.

    Args:
        model: The adapted model.
        wanted: The call that would change the task, such as ``set_task('a')``.

    Raises:
        HimalayaError: An adapter is merged: the weights are those of its task.
    """
    if is_merged(model):
        raise HimalayaError(f"the adapter is merged as it is for one task: unmerge it before {wanted}")
