"""Which nodes of a graph are the adapter's, told by their names: profiles keep them apart."""

import onnx

from himalaya_adapter.deploy.bundle.runner.profile import ADAPTER
from himalaya_adapter.deploy.onnx.operator import DOMAIN


def name_adapter_nodes(model: onnx.ModelProto) -> None:
    """Begin the names of the adapter's nodes with `ADAPTER`, in place.

    These are the operators of its domain, the nodes inside them (ONNX Runtime keeps their names when it puts them in
    the place of the operator), and what lies between them.
    """
    operators = [node for node in model.graph.node if node.domain == DOMAIN]
    made_by = {output: node for node in model.graph.node for output in node.output}
    own: dict[int, onnx.NodeProto] = {}
    # Behind every input but the first, which is the layer's own.
    waiting = [name for node in operators for name in node.input[1:]]
    while waiting:
        node = made_by.get(waiting.pop())
        if node is not None and id(node) not in own:
            own[id(node)] = node
            waiting += node.input
    own |= {id(node): node for node in operators}
    inside = [node for function in model.functions if function.domain == DOMAIN for node in function.node]
    for number, node in enumerate([*own.values(), *inside]):
        node.name = f"{ADAPTER}_{number}_{node.name}"
