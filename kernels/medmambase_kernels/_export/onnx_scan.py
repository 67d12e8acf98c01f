"""Finish a graph that PyTorch has written: ONNX's Scan in the place of each node that stands for a
recurrence, and names of axes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from medmambase_kernels._export.recurrence import DOMAIN, NAME


def put_scans(model: Any) -> None:
    """Replace each ``symbolic`` recurrence in the graph of an ``onnx_ir.Model``."""
    import onnx_ir as ir

    ours = [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, NAME)]
    for number, node in enumerate(ours):
        scan = _scan(node, number)
        for old, new in zip(node.outputs, scan.outputs, strict=True):
            new.name, new.shape, new.type = old.name, old.shape, old.type
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [scan], node.outputs, scan.outputs)
    model.opset_imports.pop(DOMAIN, None)


def name_axes(model: Any, axes: Sequence[Mapping[int, str]]) -> None:
    """Call the axes of any length what ``axes`` call them, one mapping for each input, in the place
    of PyTorch's symbols."""
    import onnx_ir as ir

    names = {
        str(value.shape[axis]): name
        for value, each in zip(model.graph.inputs, axes, strict=True)
        for axis, name in each.items()
    }
    computed = (out for node in model.graph for out in node.outputs)
    for value in (*model.graph.inputs, *computed):
        if value.shape is not None:
            value.shape = ir.Shape([names.get(str(size), size) for size in value.shape])


def _scan(node: Any, number: int) -> Any:
    """The Scan of one recurrence; ``number`` makes its names its own. A step reads A where it
    stands, outside."""
    import onnx_ir as ir

    entry, delta, drive, A, B, C = node.inputs
    kind, nodes = ir.TensorType(entry.dtype), []

    def given(name: str, of: Any) -> Any:
        """What a step gets: the state as it is, one position of all else."""
        shape = None if of.shape is None else ir.Shape(of.shape if of is entry else of.shape[1:])
        return ir.Value(name=f"{name}_of_scan_{number}", shape=shape, type=kind)

    def computed(operator: str, *inputs: Any) -> Any:
        nodes.append(ir.Node("", operator, inputs))
        out = nodes[-1].outputs[0]
        out.name, out.type = f"{operator}_{len(nodes)}_of_scan_{number}", kind
        return out

    parts = {"h": entry, "delta": delta, "drive": drive, "B": B, "C": C}
    h, step, push, b, c = inputs = [given(name, of) for name, of in parts.items()]
    decay = computed("Exp", computed("Mul", step, A))
    state = computed("Add", computed("Mul", decay, h), computed("Mul", push, b))
    y = computed("MatMul", c, state)
    body = ir.Graph(inputs, [state, y], nodes=nodes, name=f"step_of_scan_{number}")
    attributes = [ir.AttrGraph("body", body), ir.AttrInt64("num_scan_inputs", 4)]
    return ir.Node("", "Scan", list(parts.values()), attributes, num_outputs=2)
