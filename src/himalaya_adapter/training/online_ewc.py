"""Online elastic weight consolidation (EWC): parameters that earlier tasks rely on move reluctantly. No data is kept.

Penalty: Kirkpatrick et al. 2017 (arXiv:1612.00796); one running Fisher: Schwarz et al. 2018, "Progress & Compress"
(arXiv:1805.06370). See the section on EWC in ``docs/methods.md``.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from accelerate.utils import broadcast
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

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
        # Of all trainable numbers, parameter after parameter; ``None`` in the first task.
        self.fisher: Tensor | None = None
        self.anchor = torch.zeros(0)

    def penalties(self, model: nn.Module) -> list[Callable[[], Tensor]]:
        """The penalty on the model's trainable parameters, a function that returns a scalar; none in the first task.

        Raises:
            HimalayaError: They are not those of the task before.
        """
        if self.fisher is None:
            return []
        parameters = self._parameters(model)
        weight, anchor = self.strength / 2 * self.fisher.float(), self.anchor

        def penalty() -> Tensor:
            now = parameters_to_vector(parameters)
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
        parameters = self._parameters(model)
        model.eval()
        learnt = broadcast(scaled_to_mean_one(diagonal_fisher(parameters, log_likelihoods)))
        if self.fisher is not None:
            learnt = DECAY * self.fisher.to(learnt) + learnt
        self.fisher = learnt.to(FISHER_DTYPE)
        self.anchor = parameters_to_vector(parameters).detach()

    def save(self, folder: Path, model: nn.Module) -> None:
        """Write ``F``, a tensor for each parameter, beside the adapter that was saved in ``folder``."""
        parameters = trainable_parameters(model)
        like = {name: torch.zeros_like(parameter, dtype=FISHER_DTYPE) for name, parameter in parameters.items()}
        if self.fisher is not None:
            vector_to_parameters(self.fisher, like.values())
        save_file(like, folder / EWC_FILE)

    def load(self, folder: Path, model: nn.Module) -> None:
        """Read what `save` wrote.

        Args:
            folder: The saved adapter.
            model: The adapted model, into which that adapter has been loaded.
        """
        parameters, stored = trainable_parameters(model), load_file(folder / EWC_FILE)
        self.fisher = torch.cat([stored[name].flatten() for name in parameters])
        self.anchor = parameters_to_vector(parameters.values()).detach()

    def _parameters(self, model: nn.Module) -> list[nn.Parameter]:
        parameters = list(trainable_parameters(model).values())
        if self.fisher is not None and sum(parameter.numel() for parameter in parameters) != len(self.fisher):
            raise HimalayaError(
                f"model.adapter.ewc_lambda={self.strength:g}: EWC needs the same trainable parameters in every task, "
                "this method's change between tasks: model.adapter.ewc_lambda=null runs it without"
            )
        return parameters


def diagonal_fisher(parameters: Sequence[Tensor], log_likelihoods: Iterable[Tensor]) -> Tensor:
    """The diagonal of the empirical Fisher information: the mean over items of ``(∂ log p(y | x) / ∂θ_i)²``.

    Args:
        parameters: Those to differentiate by.
        log_likelihoods: One scalar per item, for the item's own answer ``y``. An item whose gradient is not finite is
            left out, as a training step with it is.

    Returns:
        One number for each of the parameters' numbers; zeros if no item is left.
    """
    total, items = torch.zeros_like(parameters_to_vector(parameters)), 0
    for value in log_likelihoods:
        square = parameters_to_vector(torch.autograd.grad(value, parameters, materialize_grads=True)).square()
        if square.isfinite().all():
            items += 1
            total += square
    return total / max(items, 1)


def scaled_to_mean_one(fisher: Tensor) -> Tensor:
    """Divide by the mean over all numbers; zeros stay zeros."""
    return fisher / (float(fisher.double().mean()) or 1.0)
