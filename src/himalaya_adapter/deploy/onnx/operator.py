"""The operators of ``ai.himalaya``: what the adapter adds to a layer, as ONNX functions (docs/deployment.md).

Each is a model-local function of standard operators, so stock ONNX Runtime runs it on any CPU without a compiled
library. They are forms of one map: `RoutedUpdateWithTree` looks everything up for each token; `RoutedUpdate` leaves
out the tree where that changes nothing; `FixedRouteUpdate` serves tasks whose active atoms are the same for all
tokens, and `GuardedUpdate` those for which that has to be seen in each run.
onnxscript translates the bodies; Python never runs them.
"""

# mypy: ignore-errors

from collections.abc import Sequence

from onnxscript import opset18 as op
from onnxscript import script
from onnxscript.values import Opset

DOMAIN, VERSION = "ai.himalaya", 1
# The oldest in which all operators exist as they are used here: reductions that take their axes as an input.
OLDEST_OPSET = 18

_domain = Opset(DOMAIN, VERSION)


@script(_domain)
def ActiveAtoms(logits, coefficients, most: int, inverse_temperature: float):
    r"""Which atoms are on, at most ``most``, and their coefficients: both ``(b, s, most)``.

    With :math:`f(\tau) = \sum_j \sigma((a_j - \tau)/T)`, which falls, and :math:`\tau_0` the smallest
    :math:`\tau \ge 0` with :math:`f(\tau) \le B`, atom i is on (:math:`a_i > \tau_0`) if and only if
    :math:`a_i > 0` and :math:`f(a_i) < B`; the largest one always is. No search for the shift is needed.
    """
    count = op.Constant(value_int=most)
    last = op.Constant(value_ints=[-1])
    highest, indices = op.TopK(logits, op.Reshape(count, last), axis=-1)
    above = op.Sub(op.Unsqueeze(logits, op.Constant(value_ints=[-2])), op.Unsqueeze(highest, last))
    expected = op.ReduceSum(op.Sigmoid(op.Mul(above, op.Constant(value_float=inverse_temperature))), last, keepdims=0)
    within = op.And(op.Less(expected, op.CastLike(count, expected)), op.Greater(highest, op.Constant(value_float=0.0)))
    first = op.Equal(op.Range(op.Constant(value_int=0), count, op.Constant(value_int=1)), op.Constant(value_int=0))
    on = op.CastLike(op.Or(within, first), logits)
    return op.Mul(op.GatherElements(coefficients, indices, axis=-1), on), indices


@script(_domain)
def LookedUpUpdate(
    direction, logits, coefficients, gain, codes, scale, minimum, smoothing,
    most: int, inverse_temperature: float, root_width: float,
):  # fmt: skip
    r"""Rebuild r from the codes of the active atoms and apply it: :math:`\tanh(g)\, r\,(r \cdot \hat x)`.

    Args:
        direction: :math:`\hat x / \sqrt d`, ``(b, s, d)``.
        logits: Gate logits ``(b, s, k)``.
        coefficients: ``(b, s, k)``.
        gain: Before its tanh, ``(b, s, 1)``.
        codes: int8 codes of the atoms in groups, ``(k, G, g)``.
        scale: Step of each group, ``(k, G, 1)``.
        minimum: Value of code 0 of each group, ``(k, G, 1)``.
        smoothing: Factor of each column, ``(d,)``.
        most: The most atoms that a token may use.
        inverse_temperature: Of the gates.
        root_width: :math:`\sqrt d`.
    """
    weights, indices = ActiveAtoms(logits, coefficients, most=most, inverse_temperature=inverse_temperature)
    values = op.Mul(op.CastLike(op.Gather(codes, indices), direction), op.Gather(scale, indices))
    grouped = op.Add(values, op.Gather(minimum, indices))  # (b, s, most, G, g)
    atoms = op.Reshape(grouped, op.Constant(value_ints=[0, 0, 0, -1]))
    combined = op.Squeeze(
        op.MatMul(op.Unsqueeze(weights, op.Constant(value_ints=[-2])), atoms), op.Constant(value_ints=[-2])
    )
    unit = op.LpNormalization(op.Mul(combined, smoothing), axis=-1, p=2)
    along = op.ReduceSum(op.Mul(unit, direction), op.Constant(value_ints=[-1]))
    return op.Mul(unit, op.Mul(op.Tanh(gain), op.Mul(along, op.Constant(value_float=root_width))))


@script(_domain)
def RoutedUpdate(
    x, head, projection, shift, codes, scale, minimum, smoothing,
    parts: Sequence[int], most: int, inverse_temperature: float, root_width: float,
):  # fmt: skip
    r"""The update of a layer's output, ``(b, s, d)``.

    Args:
        x: The layer's input, ``(b, s, d)``.
        head: The tasks' own linear heads, ``(b, p + 1, 2k + 1)``.
        projection: :math:`\sqrt d\, P^\top` and a column of zeros, ``(d, p + 1)``.
        shift: Minus the router's offset, and a number whose tanh is 1, ``(p + 1,)``.
        codes: As for `LookedUpUpdate`, and so are the other arguments.
        scale: See there.
        minimum: See there.
        smoothing: See there.
        parts: ``(k, k, 1)``.
        most: See there.
        inverse_temperature: See there.
        root_width: See there.
    """
    direction = op.LpNormalization(x, axis=-1, p=2)
    latents = op.Tanh(op.Add(op.MatMul(direction, projection), shift))
    logits, coefficients, gain = op.Split(op.MatMul(latents, head), op.Constant(value_ints=parts), axis=-1)
    return LookedUpUpdate(
        direction, logits, coefficients, gain, codes, scale, minimum, smoothing,
        most=most, inverse_temperature=inverse_temperature, root_width=root_width,
    )  # fmt: skip


@script(_domain)
def TreeUpdate(
    direction, shifted, head, codes, scale, minimum, smoothing, borders, border_shift, log_width, leaf_of_atom,
    parts: Sequence[int], most: int, inverse_temperature: float, root_width: float,
    levels: int, lowest: float, largest_bonus: float,
):  # fmt: skip
    r"""`RoutedUpdate`, after the projections, with the tree's bonus on the gate logits of the elastic atoms.

    An atom's bonus is :math:`-\beta/(1 + \beta/b)`, :math:`\beta` being how far the logarithm of the token's soft
    membership in the atom's leaf lies below that in the best leaf.

    Args:
        direction: :math:`\hat x / \sqrt d`, ``(b, s, d)``.
        shifted: The latents before their tanh, ``(b, s, p + 1)``.
        head: As for `RoutedUpdate`, and so are the other arguments that are not named here.
        codes: See there.
        scale: See there.
        minimum: See there.
        smoothing: See there.
        borders: Maps ``shifted`` to the distances from both borders of each leaf on each level of the tree, in
            spreads and with the sign changed, ``(p + 1, 2 levels leaves)``: lower borders, then upper ones.
        border_shift: Of these, ``(2 levels leaves,)``.
        log_width: Logarithm of the width between them, ``(levels, leaves)``.
        leaf_of_atom: The leaf of each atom, ``(k,)``; the extra, last leaf for a core atom, whose bonus is 0.
        parts: See there.
        most: See there.
        inverse_temperature: See there.
        root_width: See there.
        levels: Levels of the tree.
        lowest: The least logarithm of a membership on one level.
        largest_bonus: b.
    """
    outputs = op.MatMul(op.Tanh(shifted), head)
    plain_logits, coefficients, gain = op.Split(outputs, op.Constant(value_ints=parts), axis=-1)
    outside = op.Softplus(op.Add(op.MatMul(shifted, borders), border_shift))
    lower, upper = op.Split(outside, axis=-1, num_outputs=2)
    last = op.Constant(value_ints=[-1])
    level = op.Reshape(op.Constant(value_int=levels), last)
    by_level = op.Reshape(op.Add(lower, upper), op.Concat(op.Constant(value_ints=[0, 0]), level, last, axis=0))
    bounded = op.Max(op.Sub(log_width, by_level), op.Constant(value_float=lowest))
    membership = op.ReduceSum(bounded, op.Constant(value_ints=[-2]), keepdims=0)
    below = op.Sub(op.ReduceMax(membership, last), membership)
    relative = op.Div(below, op.Constant(value_float=largest_bonus))
    bonus = op.Neg(op.Div(below, op.Add(relative, op.Constant(value_float=1.0))))
    with_core = op.Pad(bonus, op.Constant(value_ints=[0, 0, 0, 0, 0, 1]))
    logits = op.Add(plain_logits, op.Gather(with_core, leaf_of_atom, axis=-1))
    return LookedUpUpdate(
        direction, logits, coefficients, gain, codes, scale, minimum, smoothing,
        most=most, inverse_temperature=inverse_temperature, root_width=root_width,
    )  # fmt: skip


@script(_domain)
def RoutedUpdateWithTree(
    x, head, projection, shift, codes, scale, minimum, smoothing, borders, border_shift, log_width, leaf_of_atom,
    parts: Sequence[int], most: int, inverse_temperature: float, root_width: float,
    levels: int, lowest: float, largest_bonus: float,
):  # fmt: skip
    """`RoutedUpdate` with the tree: its arguments, and those of `TreeUpdate`."""
    direction = op.LpNormalization(x, axis=-1, p=2)
    return TreeUpdate(
        direction, op.Add(op.MatMul(direction, projection), shift), head, codes, scale, minimum, smoothing,
        borders, border_shift, log_width, leaf_of_atom,
        parts=parts, most=most, inverse_temperature=inverse_temperature, root_width=root_width,
        levels=levels, lowest=lowest, largest_bonus=largest_bonus,
    )  # fmt: skip


@script(_domain)
def FixedRoute(combination, gain, direction, inward, outward):
    r"""The update in the basis of the active atoms: :math:`\tanh(g)\,(\hat c \cdot Q \hat x)\, Q^\top \hat c`.

    Args:
        combination: c, ``(b, s, q)``: the coordinates of r before it is scaled to length 1.
        gain: Before its tanh, ``(b, s, 1)``.
        direction: :math:`\hat x / \sqrt d`, ``(b, s, d)``.
        inward: :math:`\sqrt d\, Q^\top`, ``(b, d, q)``.
        outward: Q, ``(b, q, d)``.
    """
    unit = op.LpNormalization(combination, axis=-1, p=2)
    along = op.ReduceSum(op.Mul(unit, op.MatMul(direction, inward)), op.Constant(value_ints=[-1]))
    return op.MatMul(op.Mul(unit, op.Mul(along, op.Tanh(gain))), outward)


@script(_domain)
def FixedRouteUpdate(x, inward, outward, fixed_head, projection, shift, fixed_parts: Sequence[int]):
    r"""The update where the atoms of a task are the same for all tokens, so that they are looked up once per run.

    Q holds an orthonormal basis of their span: :math:`r = Q^\top c / \lVert c \rVert`, with c read off the head.

    Args:
        x: The layer's input, ``(b, s, d)``.
        inward: :math:`\sqrt d\, Q^\top`, ``(b, d, q)``.
        outward: Q, ``(b, q, d)``.
        fixed_head: From the latents to c and the gain, ``(b, p + 1, q + 1)``.
        projection: As for `RoutedUpdate`.
        shift: As for `RoutedUpdate`.
        fixed_parts: ``(q, 1)``.
    """
    direction = op.LpNormalization(x, axis=-1, p=2)
    outputs = op.MatMul(op.Tanh(op.Add(op.MatMul(direction, projection), shift)), fixed_head)
    combination, gain = op.Split(outputs, op.Constant(value_ints=fixed_parts), axis=-1)
    return FixedRoute(combination, gain, direction, inward, outward)


@script(_domain)
def GuardedUpdate(
    x, inward, outward, fixed_head, head, projection, shift, codes, scale, minimum, smoothing,
    borders, border_shift, log_width, leaf_of_atom,
    fixed_parts: Sequence[int], parts: Sequence[int], most: int, inverse_temperature: float, root_width: float,
    levels: int, lowest: float, largest_bonus: float,
):  # fmt: skip
    r"""`FixedRouteUpdate` where it is seen to be exact for all tokens of the run, else `RoutedUpdateWithTree`.

    Its arguments are theirs, but for two.

    Args:
        x: The layer's input, ``(b, s, d)``.
        inward: As for `FixedRouteUpdate`.
        outward: As for `FixedRouteUpdate`.
        fixed_head: As there, with m more columns, ``(b, p + 1, q + 1 + m)``: where all are positive, a token's active
            atoms are those of the basis.
        head: As for `RoutedUpdateWithTree`, and so are all that follow.
        projection: See there.
        shift: See there.
        codes: See there.
        scale: See there.
        minimum: See there.
        smoothing: See there.
        borders: See there.
        border_shift: See there.
        log_width: See there.
        leaf_of_atom: See there.
        fixed_parts: ``(q, 1, m)``.
        parts: See there.
        most: See there.
        inverse_temperature: See there.
        root_width: See there.
        levels: See there.
        lowest: See there.
        largest_bonus: See there.
    """
    direction = op.LpNormalization(x, axis=-1, p=2)
    shifted = op.Add(op.MatMul(direction, projection), shift)
    outputs = op.MatMul(op.Tanh(shifted), fixed_head)
    combination, gain, margins = op.Split(outputs, op.Constant(value_ints=fixed_parts), axis=-1)
    if op.Greater(op.ReduceMin(margins, keepdims=0), op.Constant(value_float=0.0)):
        update = FixedRoute(combination, gain, direction, inward, outward)
    else:
        update = TreeUpdate(
            direction, shifted, head, codes, scale, minimum, smoothing, borders, border_shift, log_width, leaf_of_atom,
            parts=parts, most=most, inverse_temperature=inverse_temperature, root_width=root_width,
            levels=levels, lowest=lowest, largest_bonus=largest_bonus,
        )  # fmt: skip
    return update


FUNCTIONS = (
    *(ActiveAtoms, LookedUpUpdate, RoutedUpdate, TreeUpdate, RoutedUpdateWithTree),
    *(FixedRoute, FixedRouteUpdate, GuardedUpdate),
)
