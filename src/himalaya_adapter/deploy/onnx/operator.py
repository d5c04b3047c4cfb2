"""The operator ``ai.himalaya::RoutedUpdate``: what the adapter adds to a layer, as ONNX functions (docs/deployment.md).

Each is a model-local function of standard operators, so stock ONNX Runtime runs it on any CPU without a compiled
library. Three forms of one map: `RoutedUpdateWithTree` looks everything up for each token; `RoutedUpdate` leaves out
the tree where that changes nothing; `FixedRouteUpdate` serves tasks whose active atoms are the same for all tokens.
onnxscript translates the bodies; Python never runs them.
"""

from collections.abc import Sequence

from onnxscript import opset18 as op
from onnxscript import script
from onnxscript.values import Opset

DOMAIN, VERSION = "ai.himalaya", 1
# The oldest in which all operators exist as they are used here: reductions that take their axes as an input.
OLDEST_OPSET = 18

_domain = Opset(DOMAIN, VERSION)


@script(_domain)
def ActiveAtoms(logits, coefficients, most: int, inverse_temperature: float):  # type: ignore
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
def LookedUpUpdate(  # type: ignore
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
def RoutedUpdate(  # type: ignore
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
def RoutedUpdateWithTree(  # type: ignore
    x, head, projection, shift, codes, scale, minimum, smoothing, borders, border_shift, log_width, leaf_of_atom,
    parts: Sequence[int], most: int, inverse_temperature: float, root_width: float,
    levels: int, lowest: float, largest_bonus: float,
):  # fmt: skip
    r"""`RoutedUpdate` with the tree's bonus on the gate logits of the elastic atoms.

    An atom's bonus is :math:`-\beta/(1 + \beta/b)`, :math:`\beta` being how far the logarithm of the token's soft
    membership in the atom's leaf lies below that in the best leaf.

    Args:
        x: As for `RoutedUpdate`, and so are the other arguments that are not named here.
        head: See there.
        projection: See there.
        shift: See there.
        codes: See there.
        scale: See there.
        minimum: See there.
        smoothing: See there.
        borders: Maps the shifted projections to the distances from both borders of each leaf on each level of the
            tree, in spreads and with the sign changed, ``(p + 1, 2 levels leaves)``: lower borders, then upper ones.
        border_shift: Of these, ``(2 levels leaves,)``.
        log_width: Logarithm of the width between them, ``(levels, leaves + 1)``; the last column is 0.
        leaf_of_atom: The leaf of each atom, ``(k,)``; the extra, last leaf for a core atom, whose bonus is 0.
        parts: See there.
        most: See there.
        inverse_temperature: See there.
        root_width: See there.
        levels: Levels of the tree.
        lowest: The least logarithm of a membership on one level.
        largest_bonus: b.
    """
    direction = op.LpNormalization(x, axis=-1, p=2)
    shifted = op.Add(op.MatMul(direction, projection), shift)
    plain_logits, coefficients, gain = op.Split(
        op.MatMul(op.Tanh(shifted), head), op.Constant(value_ints=parts), axis=-1
    )
    outside = op.Softplus(op.Add(op.MatMul(shifted, borders), border_shift))
    lower, upper = op.Split(outside, axis=-1, num_outputs=2)
    level = op.Constant(value_int=levels)
    last = op.Constant(value_ints=[-1])
    shape = op.Concat(op.Constant(value_ints=[0, 0]), op.Reshape(level, last), last, axis=0)
    by_level = op.Sub(log_width, op.Reshape(op.Add(lower, upper), shape))
    membership = op.ReduceSum(
        op.Max(by_level, op.Constant(value_float=lowest)), op.Constant(value_ints=[-2]), keepdims=0
    )
    below = op.Sub(op.ReduceMax(membership, last), membership)
    bonus = op.Neg(
        op.Div(below, op.Add(op.Div(below, op.Constant(value_float=largest_bonus)), op.Constant(value_float=1.0)))
    )
    every = op.Pad(bonus, op.Constant(value_ints=[0, 0, 0, 0, 0, 1]))
    logits = op.Add(plain_logits, op.Gather(every, leaf_of_atom, axis=-1))
    return LookedUpUpdate(
        direction, logits, coefficients, gain, codes, scale, minimum, smoothing,
        most=most, inverse_temperature=inverse_temperature, root_width=root_width,
    )  # fmt: skip


@script(_domain)
def FixedRouteUpdate(x, inward, head, outward, shift, latents: Sequence[int], parts: Sequence[int]):  # type: ignore
    r"""The update where the atoms of a task are the same for all tokens, so that they are looked up once per run.

    Q holds an orthonormal basis of their span: :math:`r = Q^\top c / \lVert c \rVert`, with c read off the head.

    Args:
        x: The layer's input, ``(b, s, d)``.
        inward: :math:`\sqrt d\, P^\top`, a column of zeros, :math:`\sqrt d\, Q^\top`: ``(b, d, p + 1 + q)``.
        head: From the latents to c and the gain, ``(b, p + 1, q + 1)``.
        outward: Q, ``(b, q, d)``.
        shift: As for `RoutedUpdate`, and zeros for the basis: ``(p + 1 + q,)``.
        latents: ``(p + 1, q)``.
        parts: ``(q, 1)``.
    """
    seen = op.Add(op.MatMul(op.LpNormalization(x, axis=-1, p=2), inward), shift)
    latent, along = op.Split(seen, op.Constant(value_ints=latents), axis=-1)
    combination, gain = op.Split(op.MatMul(op.Tanh(latent), head), op.Constant(value_ints=parts), axis=-1)
    unit = op.LpNormalization(combination, axis=-1, p=2)
    strength = op.Mul(op.ReduceSum(op.Mul(unit, along), op.Constant(value_ints=[-1])), op.Tanh(gain))
    return op.MatMul(op.Mul(unit, strength), outward)


FUNCTIONS = (ActiveAtoms, LookedUpUpdate, RoutedUpdate, RoutedUpdateWithTree, FixedRouteUpdate)
