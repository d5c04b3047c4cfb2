"""What a release file of HIMALAYA holds: all that answers, and nothing that only learning needs."""

from collections.abc import Mapping

from torch import Tensor

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.release import check_finite

from .config import HimalayaConfig

# What is left out: the task being learnt, what growth and consolidation remember, the prompts of the open task.
TRAINING = ("atoms", "fisher.", "router.task_moment")


def pack(state: Mapping[str, Tensor], config: HimalayaConfig) -> dict[str, Tensor]:
    """The part of an adapter's state that a release keeps, as it is: atoms are stored in few bits anyway.

    Raises:
        HimalayaError: A value is not finite, or a task is being learnt.
    """
    check_finite(state)
    if not state["atoms"].is_meta and state["atoms"].any():
        raise HimalayaError("what is being learnt is not stored yet: call model.end_task() before save_release")
    return {name: tensor.detach().clone() for name, tensor in state.items() if not name.startswith(TRAINING)}
