"""From a recorded graph to the ONNX model that a file holds, its parameters left out."""

from __future__ import annotations

from typing import Any

import numpy as np

from coatref.onnx_export.graph import Graph
from coatref.onnx_export.record import IMAGES
from coatref.specification.spec import Spec
from coatref.weights.own_file import SPEC_KEY, VERSION, VERSION_KEY

BATCH = "N"  # the free axis


def model_of(graph: Graph, output: str, spec: Spec, dtype: str, layout: str) -> Any:
    """An `onnx.ModelProto` without initialisers, which says in words and as JSON what it computes.

    Args:
        graph: of the forward pass.
        output: its value that is the network's output.
        spec, dtype, layout: what it was recorded for.
    """
    from onnx import helper, numpy_helper

    import coatref

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names = graph.labels | {output: spec.head.output}
    nodes = []
    for node in graph.nodes:
        attributes = {
            name: numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
            for name, value in node.attributes.items()
        }
        inputs = [names.get(each, each) for each in node.inputs]
        called = names.get(node.output, node.output)
        nodes.append(helper.make_node(node.operator, inputs, [called], name=called, **attributes))
    sides = [*spec.image_size, spec.channels] if layout == "NHWC" else [spec.channels, *spec.image_size]
    body = helper.make_graph(
        nodes,
        spec.name,
        [helper.make_tensor_value_info(IMAGES, kind, [BATCH, *sides])],
        [helper.make_tensor_value_info(spec.head.output, kind, [BATCH, spec.head.classes])],
        doc_string=described(spec, dtype, layout),
    )
    versions = [helper.make_opsetid("", graph.opset)]
    model = helper.make_model(
        body,
        opset_imports=versions,
        ir_version=helper.find_min_ir_version_for(versions),
        producer_name="coatref",
        producer_version=coatref.__version__,
        doc_string=described(spec, dtype, layout),
    )
    helper.set_model_props(model, {VERSION_KEY: VERSION, SPEC_KEY: spec.to_json()})
    return model


def described(spec: Spec, dtype: str, layout: str) -> str:
    """What a file computes, in words."""
    height, width = spec.image_size
    shape = f"N, {height}, {width}, {spec.channels}" if layout == "NHWC" else f"N, {spec.channels}, {height}, {width}"
    return (
        f"CoAtNet {spec.name}: {IMAGES} ({shape}) {dtype}, as coatref.preprocess gives them"
        f"{'' if layout == 'NHWC' else ' but channels first'}, to {spec.head.output} (N, {spec.head.classes}). "
        "Initialisers have coatref's names of parameters, values those of coatref.trace."
    )
