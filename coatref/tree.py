"""Trees of parameters: dotted names, and the nodes that JAX and torch can walk through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import wrapt

from coatref.registry import Array


class Branch(Mapping[str, Any]):
    """An immutable mapping from names to arrays, tuples and further branches; a pytree node for JAX and torch."""

    __slots__ = ("_children",)
    _children: dict[str, Any]

    def __init__(self, children: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_children", dict(children))

    def __getitem__(self, key: str) -> Any:
        return self._children[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._children)

    def __len__(self) -> int:
        return len(self._children)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable; make a changed copy with params.replace(...).")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._children)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._children,)


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and leaf of every leaf of nested mappings and tuples, in order."""
    if isinstance(tree, Mapping):
        items: Any = tree.items()
    elif type(tree) in (tuple, list):  # not a NamedTuple, which is a leaf here
        items = ((str(index), child) for index, child in enumerate(tree))
    else:
        yield prefix, tree
        return
    for name, child in items:
        yield from flatten(child, f"{prefix}.{name}" if prefix else name)


def leaves(tree: Any) -> Iterator[Any]:
    """Every leaf of nested mappings and tuples, in the order of `flatten` and without their names, in half its time."""
    if isinstance(tree, Mapping):
        for child in tree.values():
            yield from leaves(child)
    elif type(tree) in (tuple, list):
        for child in tree:
            yield from leaves(child)
    else:
        yield tree


def map_named(function: Callable[[str, Any], Any], tree: Any, prefix: str = "") -> Any:
    """The same tree with `function(dotted name, leaf)` in place of every leaf; mappings become branches."""
    if isinstance(tree, Mapping):
        return Branch(
            {name: map_named(function, child, f"{prefix}.{name}" if prefix else name) for name, child in tree.items()}
        )
    if type(tree) in (tuple, list):
        return tuple(map_named(function, child, f"{prefix}.{index}") for index, child in enumerate(tree))
    return function(prefix, tree)


Flatten = Callable[[Any], tuple[list[Any], Any]]
Unflatten = Callable[[Any, Any], Any]


def register_node(cls: type, flatten_node: Flatten, unflatten: Unflatten) -> None:
    """Make `cls` a pytree node for JAX and torch, now where they are imported and else as soon as they are.

    Args:
        cls: the class.
        flatten_node: instance -> (children, (static data, names of the children)).
        unflatten: (static data and names, children) -> instance; must not look into the children.
    """

    def with_jax(module: Any) -> None:
        def flatten_with_keys(node: Any) -> tuple[list[tuple[Any, Any]], Any]:
            children, aux = flatten_node(node)
            return [(module.tree_util.DictKey(n), child) for n, child in zip(aux[1], children, strict=True)], aux

        module.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten_node)

    def with_torch(module: Any) -> None:
        pytree = module.utils._pytree

        def flatten_with_keys(node: Any) -> tuple[list[tuple[Any, Any]], Any]:
            children, aux = flatten_node(node)
            return [(pytree.MappingKey(n), child) for n, child in zip(aux[1], children, strict=True)], aux

        pytree.register_pytree_node(
            cls, flatten_node, lambda children, aux: unflatten(aux, children), flatten_with_keys_fn=flatten_with_keys
        )

    wrapt.register_post_import_hook(with_jax, "jax")
    wrapt.register_post_import_hook(with_torch, "torch")


def _flatten_branch(branch: Branch) -> tuple[list[Array], Any]:
    return list(branch.values()), (None, tuple(branch))


def _unflatten_branch(aux: Any, children: Any) -> Branch:
    return Branch(dict(zip(aux[1], children, strict=True)))


register_node(Branch, _flatten_branch, _unflatten_branch)
