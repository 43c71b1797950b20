"""A graph of operators as it is recorded: each operator once, in order of computation, and what its result is called.

`opset` is the version of ONNX's operators; two versions differ here only in where a reduction's axes stand.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CONSTANT = "Constant"
AXES_AS_INPUT = 18  # the opset from which all reductions take their axes as an input; ReduceSum always did here


@dataclass(frozen=True)
class Node:
    """One operator: its kind, the values that it takes, the one that it gives, and its attributes."""

    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]


@dataclass
class Graph:
    """The operators so far.

    Attributes:
        opset: version of the operators.
        nodes: in order of computation.
        results: operator, inputs and attributes -> the value, so that nothing is computed twice.
        labels: value -> the name that it gets in the file in place of its own.
    """

    opset: int
    nodes: list[Node] = field(default_factory=list)
    results: dict[Hashable, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


def operate(graph: Graph, operator: str, *inputs: str, **attributes: Any) -> str:
    """The value that an operator gives; recorded where it is new."""
    key = operator, inputs, tuple(sorted(attributes.items()))
    return graph.results.get(key) or _append(graph, key, operator, inputs, attributes)


def constant(graph: Graph, array: np.ndarray) -> str:
    """The value that holds an array."""
    array = np.array(array, order="C")
    key = CONSTANT, array.dtype.name, array.shape, array.tobytes()
    return graph.results.get(key) or _append(graph, key, CONSTANT, (), {"value": array})


def reduce(graph: Graph, operator: str, value: str, axes: tuple[int, ...], *, keepdims: bool) -> str:
    """A value reduced along some axes."""
    keep = int(keepdims)
    if operator == "ReduceSum" or graph.opset >= AXES_AS_INPUT:
        return operate(graph, operator, value, constant(graph, np.asarray(axes, np.int64)), keepdims=keep)
    return operate(graph, operator, value, axes=axes, keepdims=keep)


def label(graph: Graph, value: str, name: str) -> None:
    """Call a value by a name, unless it has one already."""
    graph.labels.setdefault(value, name)


def _append(graph: Graph, key: Hashable, operator: str, inputs: tuple[str, ...], attributes: dict[str, Any]) -> str:
    output = f"{operator}_{len(graph.nodes)}"
    graph.nodes.append(Node(operator, inputs, output, attributes))
    graph.results[key] = output
    return output
