r"""A LoRA that stands in for an update on the residual stream, where no weight leads from input to output.

There the adapted module is a whole MLP, and the update :math:`\gamma\,r\,(r \cdot \hat x)` of a token is a function of
the MLP's input that is not linear. What it adds to the stream lies in the span of the few atoms :math:`D` that are in
use, though, and the MLP's last linear module adds to the same place. So a LoRA of low rank on that module can have
exactly these output directions, and its inputs are found by ridge regression (Hoerl and Kennard 1970) of the update on
the module's own inputs, with the rank reduced as in Izenman (1975).
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.batching import batches
from himalaya_adapter.methods.himalaya import HimalayaLayer, SharedAdapter

# Multiples of the mean eigenvalue of the inputs' moment that are tried.
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 5  # every fifth sequence chooses the ridge
TOKENS_AT_ONCE = 1024
MOMENT_BYTES = 2**30  # layers are fitted in groups, so that their moments need no more memory than this


class Fit(NamedTuple):
    """The LoRA of one module.

    Args:
        module: The module's name in the backbone.
        down: ``A``, ``(rank, in)``.
        up: ``B``, ``(out, rank)``.
        explained: Share of the update's energy on held-out tokens that the LoRA reproduces; ``None`` if it is exact.
    """

    module: str
    down: Tensor
    up: Tensor
    explained: float | None


class Moments:
    r"""Second moments of inputs :math:`a` and targets :math:`c`: :math:`\sum a a^\top`, :math:`\sum a c^\top`, ..."""

    def __init__(self) -> None:
        self.inputs, self.cross, self.energy = torch.zeros(()), torch.zeros(()), 0.0

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Count in tokens with inputs ``(n, i)`` and targets ``(n, k)``."""
        self.inputs = self.inputs + inputs.T @ inputs
        self.cross = self.cross + inputs.T @ targets
        self.energy += targets.double().square().sum().item()

    def unexplained(self, weight: Tensor) -> float:
        """Energy of the targets' deviation from ``inputs @ weight``, ``weight`` being ``(i, k)`` in float64."""
        fitted = (weight * (self.inputs.double() @ weight - 2 * self.cross.double())).sum()
        return self.energy + fitted.item()


def fit_lora(model: PeftModel, sequences: Sequence[list[int]], padding: int) -> list[Fit]:
    """Fit, for the task that the model answers as, one LoRA per adapted module of the residual stream.

    Args:
        model: A model with an active HIMALAYA adapter, in evaluation mode.
        sequences: Token ids of prompts with their answers, at least two.
        padding: Token id to pad with.

    Raises:
        HimalayaError: An adapted module does not end in a linear module.
    """
    adapted = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, HimalayaLayer)]
    ends = last_linears(model, [layer for _, layer in adapted], sequences[0])
    names = [
        f"{name.removeprefix('base_model.model.')}.{path}" for (name, _), (path, _) in zip(adapted, ends, strict=True)
    ]
    widest = max(end.in_features for _, end in ends)
    together = max(1, MOMENT_BYTES // (2 * 4 * widest**2))
    fits: list[Fit] = []
    for start in range(0, len(adapted), together):
        group = [(layer, end) for (_, layer), (_, end) in zip(adapted, ends, strict=True)][start : start + together]
        bases = [_output_basis(layer.shared[model.active_adapter], end.out_features) for layer, end in group]
        chosen, held_out = [[Moments() for _ in group] for _ in range(2)]
        held = [sequence for index, sequence in enumerate(sequences) if index % HELD_OUT == 0]
        used = [sequence for index, sequence in enumerate(sequences) if index % HELD_OUT != 0]
        _observe(model, group, bases, used, padding, chosen)
        _observe(model, group, bases, held, padding, held_out)
        for number, (layer, _) in enumerate(group):
            rank = layer.shared[model.active_adapter].config.expected_active_atoms
            down, up, explained = reduced_ridge(chosen[number], held_out[number], rank)
            fits.append(Fit(names[start + number], down, bases[number] @ up, explained))
    return fits


def last_linears(
    model: PeftModel, layers: Sequence[HimalayaLayer], sequence: list[int]
) -> list[tuple[str, nn.Linear]]:
    """The linear module, and its path, whose output is that of each layer's base layer.

    Args:
        model: The adapted model.
        layers: Its adapted modules.
        sequence: Any token ids.

    Raises:
        HimalayaError: There is none in a layer.
    """
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        outputs[module] = output[0] if isinstance(output, tuple) else output

    inner = [module for layer in layers for module in layer.get_base_layer().modules()]
    handles = [module.register_forward_hook(keep) for module in inner]
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor([sequence], device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for layer in layers:
        base = layer.get_base_layer()
        ends = [
            (name, module)
            for name, module in base.named_modules()
            if isinstance(module, nn.Linear) and module is not base and outputs.get(module) is outputs.get(base)
        ]
        if not ends:
            raise HimalayaError(
                f"a {type(base).__name__} does not end in a linear module, so no LoRA can stand in for its update; "
                "keep the adapter attached"
            )
        found.append(ends[0])
    return found


@torch.no_grad()
def reduced_ridge(chosen: Moments, held_out: Moments, rank: int) -> tuple[Tensor, Tensor, float]:
    """The linear map of a given rank from inputs to targets.

    For each ridge the full map is solved for, and cut to the directions in which its values have most energy; the
    ridge with the smallest deviation on the held-out tokens is solved for again with all tokens.

    Args:
        chosen: Moments of the tokens to fit to, ``i`` inputs and ``k`` targets.
        held_out: Those of the others.
        rank: The most directions.

    Returns:
        ``A`` ``(rank, i)`` and ``B`` ``(k, rank)`` in 32 bits, and the share of the held-out energy explained by them.
    """

    def solve(moments: Sequence[Moments], ridge: float) -> tuple[Tensor, Tensor]:
        inputs = sum((one.inputs.double() for one in moments[1:]), moments[0].inputs.double())
        cross = sum((one.cross.double() for one in moments[1:]), moments[0].cross.double())
        damping = (ridge * inputs.diagonal().mean()).clamp_min(torch.finfo(torch.float32).tiny)
        full = torch.linalg.solve(inputs + damping * torch.eye(len(inputs)).to(inputs), cross)
        _, directions = torch.linalg.eigh(full.T @ inputs @ full)
        leading = directions[:, -rank:]
        return (full @ leading).T, leading

    def deviation(ridge: float) -> float:
        down, up = solve([chosen], ridge)
        return held_out.unexplained((up @ down).T)

    deviations = {ridge: deviation(ridge) for ridge in RIDGES}
    best = min(RIDGES, key=deviations.__getitem__)
    down, up = solve([chosen, held_out], best)
    explained = 1 - deviations[best] / held_out.energy if held_out.energy > 0 else 1.0
    return down.float(), up.float(), explained


def _output_basis(shared: SharedAdapter, width: int) -> Tensor:
    """Orthonormal directions ``(width, k)`` that span what the atoms in use can add to an output."""
    atoms = shared.dictionary.atoms()[shared.in_use][:, :width].detach()
    return torch.linalg.qr(atoms.double().T).Q.float()


@torch.no_grad()
def _observe(
    model: PeftModel,
    group: Sequence[tuple[HimalayaLayer, nn.Linear]],
    bases: Sequence[Tensor],
    sequences: Sequence[list[int]],
    padding: int,
    moments: Sequence[Moments],
) -> None:
    """Pass sequences through the model and count in what each layer's last linear module reads and its update."""
    inputs: dict[int, Tensor] = {}
    tokens = torch.empty(0)

    def read(number: int) -> Any:
        def keep(_: nn.Module, positional: tuple[Tensor, ...]) -> None:
            inputs[number] = positional[0]

        return keep

    def count(number: int) -> Any:
        def add(layer: Any, positional: tuple[Tensor, ...], named: dict[str, Tensor], _: Any) -> None:
            hidden_states = positional[0] if positional else named["hidden_states"]
            update = layer.shared[model.active_adapter](hidden_states, len(bases[number]))
            seen = [one.reshape(-1, one.shape[-1])[tokens].float() for one in (inputs.pop(number), update)]
            moments[number].add(seen[0], seen[1] @ bases[number])

        return add

    handles = [end.register_forward_pre_hook(read(number)) for number, (_, end) in enumerate(group)]
    handles += [
        layer.register_forward_hook(count(number), with_kwargs=True) for number, (layer, _) in enumerate(group)
    ]
    try:
        for batch in _batches(model, sequences, padding):
            tokens = batch.attention_mask.flatten().bool()
            model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
                logits_to_keep=1,
            )
    finally:
        for handle in handles:
            handle.remove()


def _batches(model: PeftModel, sequences: Sequence[list[int]], padding: int) -> Iterator[Any]:
    longest = max(len(sequence) for sequence in sequences)
    return batches(sequences, max(1, TOKENS_AT_ONCE // longest), padding, model.device)
