"""The forward pass of a spec, recorded."""

from __future__ import annotations

from coatref.model import run
from coatref.onnx_export.arrays import Recorded, held, laid
from coatref.onnx_export.graph import Graph, label
from coatref.onnx_export.lengths import Batch
from coatref.onnx_export.operators import GRID_FIRST, primitives_in
from coatref.params import Params, tensor_tree
from coatref.registry import Array
from coatref.specification.spec import Spec
from coatref.tree import map_named

IMAGES = "images"  # the graph's input


def recorded(spec: Spec, dtype: str, layout: str, opset: int) -> tuple[Graph, str]:
    """The operators that compute a spec's output from `IMAGES` and from parameters under their dotted names.

    Args:
        spec: the network; images have its size.
        dtype: of everything.
        layout: of the images, "NHWC" or "NCHW".
        opset: version of the operators.

    Returns:
        The graph, and the value that is the output, (N, classes). Values have the names of `coatref.trace`; grids stand
        there as the operators have them, mostly channels first.
    """
    graph = Graph(opset)
    params = Params(
        map_named(lambda name, tensor: held(graph, tensor.shape, dtype, name), tensor_tree(spec)),
        spec,
    )
    order = (0, 1, 2, 3) if layout == "NHWC" else GRID_FIRST
    images = held(graph, (Batch(), *spec.image_size, spec.channels), dtype, IMAGES, order)

    def tap(name: str, value: Array) -> Array:
        if isinstance(value, Recorded) and value.known is None:
            label(graph, value.value, name)
        return value

    return graph, laid(graph, run(params, images, primitives_in(dtype), tap))
