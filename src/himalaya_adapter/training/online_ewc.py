"""Online elastic weight consolidation (EWC): parameters that earlier tasks rely on move reluctantly. No data is kept.

Penalty: Kirkpatrick et al. 2017 (arXiv:1612.00796); one running Fisher: Schwarz et al. 2018, "Progress & Compress"
(arXiv:1805.06370). See the section on EWC in ``docs/methods.md``.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from accelerate.utils import broadcast
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from himalaya_adapter.budget import FISHER_DTYPE
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.packed_adapter import trainable_parameters

EWC_FILE = "ewc.safetensors"
# Of a task's own training items, in hash order and so a fixed random draw: so many gradients give its Fisher.
FISHER_ITEMS = 64
# γ: Progress & Compress asks for less than 1, so that old tasks fade gracefully and the sum stays bounded, by
# 1 / (1 − γ) tasks' worth. 0.9 is the decay of EWC++'s running Fisher (Chaudhry et al. 2018, arXiv:1801.10112).
DECAY = 0.9


class OnlineEWC:
    """Adds ``λ/2 Σ_i F_i (θ_i − θ*_i)²`` to the loss of every task but the first.

    After a task ``F ← γ F + F_t`` and ``θ* ← θ``, where ``F_t`` is the diagonal empirical Fisher of that task (see
    `diagonal_fisher`), scaled to mean 1 over all trainable numbers: a task counts as much as another, as in Progress &
    Compress, and ``λ`` does not depend on how large a model's or an adapter's gradients are.

    What is stored is ``F`` alone, in bfloat16: ``θ*`` is the adapter that was saved with it.

    Args:
        strength: ``λ``, above 0.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.fisher: dict[str, Tensor] = {}  # by parameter name, in that parameter's shape; empty in the first task
        self.anchor: dict[str, Tensor] = {}

    def penalties(self, model: nn.Module) -> list[Callable[[], Tensor]]:
        """The penalty on the model's trainable parameters, a function that returns a scalar; none in the first task.

        Raises:
            HimalayaError: They are not those of the task before.
        """
        if not self.fisher:
            return []
        parameters = trainable_parameters(model)
        self._check_same(parameters)
        weight = self.strength / 2 * torch.cat([self.fisher[name].float().flatten() for name in parameters])
        anchor = torch.cat([self.anchor[name].flatten() for name in parameters])

        def penalty() -> Tensor:
            now = parameters_to_vector(parameters.values())
            # A resumed run has read both before the Trainer moves the model to its device.
            return (weight.to(now.device) * (now - anchor.to(now.device)).square()).sum()

        return [penalty]

    def consolidate(self, model: nn.Module, log_likelihoods: Iterable[Tensor]) -> None:
        """Take in a task that has just been learnt.

        Deterministic: the model is in evaluation mode, and all processes take the first one's result.

        Args:
            model: The adapted model; it is left in evaluation mode.
            log_likelihoods: log p(answer | prompt) of items of the task, scalars that ``model`` computes when they are
                asked for.

        Raises:
            HimalayaError: The trainable parameters are not those of the task before.
        """
        parameters = trainable_parameters(model)
        self._check_same(parameters)
        model.eval()
        learnt = broadcast(scaled_to_mean_one(diagonal_fisher(parameters, log_likelihoods)))
        if self.fisher:
            learnt = {name: DECAY * self.fisher[name].to(value) + value for name, value in learnt.items()}
        self.fisher = {name: value.to(FISHER_DTYPE) for name, value in learnt.items()}
        self._anchor_at(parameters)

    def save(self, folder: Path) -> None:
        """Write ``F`` beside the adapter that was saved in ``folder``."""
        save_file({name: tensor.contiguous() for name, tensor in self.fisher.items()}, folder / EWC_FILE)

    def load(self, folder: Path, model: nn.Module) -> None:
        """Read what `save` wrote.

        Args:
            folder: The saved adapter.
            model: The adapted model, into which that adapter has been loaded.
        """
        parameters = trainable_parameters(model)
        self.fisher = load_file(folder / EWC_FILE)
        self._check_same(parameters)
        self._anchor_at(parameters)

    def _anchor_at(self, parameters: Mapping[str, Tensor]) -> None:
        self.anchor = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def _check_same(self, parameters: Mapping[str, Tensor]) -> None:
        before = {name: tuple(tensor.shape) for name, tensor in self.fisher.items()}
        now = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
        changed = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
        if before and changed:
            raise HimalayaError(
                f"model.adapter.ewc_lambda={self.strength:g}: EWC needs the same trainable parameters in every task, "
                f"this method's change between tasks ({changed[0]} and {len(changed) - 1} others): "
                "model.adapter.ewc_lambda=null runs it without"
            )


def diagonal_fisher(parameters: Mapping[str, Tensor], log_likelihoods: Iterable[Tensor]) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information: the mean over items of ``(∂ log p(y | x) / ∂θ_i)²``.

    Args:
        parameters: Those to differentiate by.
        log_likelihoods: One scalar per item, for the item's own answer ``y``. An item whose gradient is not finite is
            left out, as a training step with it is.

    Returns:
        A tensor of its shape for each parameter; zeros if no item is left.
    """
    total = {name: torch.zeros(parameter.shape).to(parameter) for name, parameter in parameters.items()}
    items = 0
    for value in log_likelihoods:
        gradients = torch.autograd.grad(value, list(parameters.values()), materialize_grads=True)
        squares = [gradient.square() for gradient in gradients]
        if torch.stack([square.isfinite().all() for square in squares]).all():
            items += 1
            for sum_of_squares, square in zip(total.values(), squares, strict=True):
                sum_of_squares += square
    return {name: sum_of_squares / max(items, 1) for name, sum_of_squares in total.items()}


def scaled_to_mean_one(fisher: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Divide by the mean over all numbers of all tensors; zeros stay zeros."""
    mean = sum(float(tensor.double().sum()) for tensor in fisher.values()) / sum(t.numel() for t in fisher.values())
    return {name: tensor / (mean or 1.0) for name, tensor in fisher.items()}
