"""Values that follow from tensors and are made once, until one of those has changed."""

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Kept(Generic[T]):
    """One such value. It can be used in any later pass, whatever the pass was that it was first made in.

    Noticed is what torch counts as a change: another tensor, or a write to the same one, but not to its ``data``.
    A copy begins empty: it has tensors of its own.
    """

    def __init__(self) -> None:
        self._state: Any = None
        self._sources: tuple[Tensor, ...] = ()

    def get(self, make: Callable[[], T], *sources: Tensor, given: Hashable = None) -> T:
        """The value.

        Args:
            make: Makes it, in full precision; without gradients, unless a source has a graph.
            sources: The tensors that it follows from.
            given: What else it follows from.
        """
        if any(one.grad_fn is not None or one.is_inference() for one in sources):
            return make()  # they are of this pass alone
        state = given, [one._version for one in sources]
        if state != self._state or any(one is not other for one, other in zip(sources, self._sources, strict=True)):
            with torch.inference_mode(False), torch.no_grad(), full_precision(sources[0]):
                self._value = make()
            self._state, self._sources = state, sources
        return self._value

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Without mixed precision, on the device of a tensor."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)
