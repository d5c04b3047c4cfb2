"""The operators of ``ai.himalaya``: the anchored update as ONNX functions (docs/deployment.md).

Each is a model-local function of standard operators, so stock ONNX Runtime runs it on any CPU without a compiled
library. `Vectors` makes the two vectors of every layer once per pass, out of the codes of the task's atoms; `Update`
is what a layer adds: two dot products. onnxscript translates the bodies; Python never runs them.
"""

# mypy: ignore-errors

from onnxscript import opset18 as op
from onnxscript import script
from onnxscript.values import Opset

DOMAIN, VERSION = "ai.himalaya", 1

_domain = Opset(DOMAIN, VERSION)


@script(_domain)
def Atoms(numbers, codes, scale, minimum, width: int):
    """Look atoms up and rebuild them: numbers of any shape ``(...)`` to ``(..., d)``; the tables are `Vectors`'."""
    last = op.Constant(value_ints=[-1])
    steps = op.Gather(scale, numbers)
    grouped = op.Add(op.Mul(op.CastLike(op.Gather(codes, numbers), steps), steps), op.Gather(minimum, numbers))
    rows = op.Reshape(grouped, op.Concat(op.Shape(numbers), last, axis=0))
    return op.Slice(rows, op.Constant(value_ints=[0]), op.Reshape(op.Constant(value_int=width), last), last)


@script(_domain)
def Bounded(rows, most: float):
    """Rows ``(..., d)``, each scaled back to norm ``most`` where it is longer."""
    norm = op.ReduceL2(rows, op.Constant(value_ints=[-1]))
    bound = op.Constant(value_float=most)
    return op.Mul(rows, op.Div(bound, op.Max(norm, bound)))


@script(_domain)
def Vectors(
    task,
    numbers,
    coefficients,
    codes,
    scale,
    minimum,
    signs,
    layer_codes,
    channels,
    width: int,
    step: float,
    bound: float,
):
    r"""Write vectors r ``(b, L, d)`` and read vectors v, as columns ``(b, d, L)``, of all layers.

    :math:`r = (\rho + q)/\lVert\rho + q\rVert`, and :math:`v = \rho - q - r` scaled back to norm ``bound``, with the
    anchors :math:`\rho` made of the core's atoms and :math:`q` of the task's. Then r is multiplied by the channels'
    sizes, and v divided by them.

    Args:
        task: Numbers of the tasks that the rows of the batch are answered as, ``(b,)``.
        numbers: Of each task's atoms the dictionary atoms that it combines, ``(T, k, t)``.
        coefficients: How much of each, int8, ``(T, k, t)``.
        codes: uint8 codes of the dictionary's atoms in groups, the core's first, ``(n, G, g)``.
        scale: Step of each group, ``(n, G, 1)``.
        minimum: Value of code 0 of each group, ``(n, G, 1)``.
        signs: With which core atoms make the anchors, up to a factor, ``(L, k_c)``.
        layer_codes: Which of the task's atoms act in which layer, ``(L, k)``.
        channels: The channels' sizes, ``(d,)``.
        width: d; the last group may be longer.
        step: Of a coefficient.
        bound: Largest norm of v.
    """
    core = op.Range(op.Constant(value_int=0), op.Squeeze(op.Shape(signs, start=1)), op.Constant(value_int=1))
    anchors = op.LpNormalization(op.MatMul(signs, Atoms(core, codes, scale, minimum, width=width)), axis=-1, p=2)
    terms = Atoms(op.Gather(numbers, task), codes, scale, minimum, width=width)
    weights = op.Mul(op.CastLike(op.Gather(coefficients, task), signs), op.Constant(value_float=step))
    before_last = op.Constant(value_ints=[-2])
    atoms = op.Squeeze(op.MatMul(op.Unsqueeze(weights, before_last), terms), before_last)
    moves = op.MatMul(layer_codes, Bounded(atoms, most=1.0))
    write = op.LpNormalization(op.Add(anchors, moves), axis=-1, p=2)
    # The anchor goes the same way as r, so that rounding cancels too.
    unmoved = op.LpNormalization(anchors, axis=-1, p=2)
    read = Bounded(op.Sub(op.Sub(unmoved, moves), write), most=bound)
    return op.Mul(write, channels), op.Transpose(op.Div(read, channels), perm=[0, 2, 1])


@script(_domain)
def Update(hidden_states, write, read):
    r"""A layer's output with its update, :math:`h + r (v^\top h)`: ``(b, s, d)``, r ``(b, 1, d)``, v ``(b, d, 1)``."""
    return op.Add(hidden_states, op.Mul(op.MatMul(hidden_states, read), write))


FUNCTIONS = (Atoms, Bounded, Vectors, Update)
