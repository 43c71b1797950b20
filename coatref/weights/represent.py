"""The same network under another project's conventions, where these can express it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from coatref.attention.relative_bias import oriented
from coatref.errors import CoatrefError, WeightsError
from coatref.params import Params, from_flat, tensor_tree
from coatref.registry import sealed
from coatref.specification.catalogue import spec as spec_named
from coatref.specification.parts import ConvStem
from coatref.specification.spec import Spec
from coatref.tree import flatten
from coatref.weights.dialects import DIALECTS
from coatref.weights.export import dialect_named
from coatref.weights.files import on_host

SHOWN = 12  # conventions named in a message

# Fields that change no output: what a checkpoint is called, was published with or started from, and how tables would be
# resized.
SILENT = ("name", "preprocessing", "fused_qkv", "resize", "initial", "image_size")

# Fields that only say which tensors there are and how wide: what they come to is compared by the tensors' shapes.
SIZES = (
    *("expansion", "expansion_from", "expansion_rounding", "expansion_divisor"),
    *("ratio", "of", "rounding", "divisor"),  # of squeeze-excite
    *("heads", "heads_from", "projection"),
)

# The scale multiplies q, k, both by its root, or their product: one function, rounded otherwise.
SCALE_SITES = ("query", "key", "query_and_key", "logits")


class Obstacle(NamedTuple):
    """A convention that stands in the way: where it is in the spec, what it is here and what it is there."""

    path: str
    ours: Any
    theirs: Any

    def __str__(self) -> str:
        return f"{self.path} is {shown(self.ours)} here and {shown(self.theirs)} there"


def shown(value: Any) -> str:
    """A field's value for a message."""
    return f"{json.dumps(value):.120}"


def represented(params: Params, dialect: str) -> Params:
    """The same network under a spec of a dialect's, for `coatref.export` to give to an implementation of that project.

    What can be said in other words is: a table for the other order of query and key is flipped, the scale of attention may
    stand at q, k or their product, a bias that ours lacks becomes zeros and one of zeros that theirs lacks is left out, a
    layer scale that ours lacks becomes ones. Nothing is approximated.

    Args:
        params: of any library.
        dialect: a key of `coatref.weights.dialects.DIALECTS`; "coatref" has every spec.

    Returns:
        NumPy arrays under the spec of the dialect; the parameters as they are where it is already one.

    Raises:
        InputError: the dialect is not known.
        WeightsError: none of its specs computes this network; the message tells the conventions in the way.
    """
    target = dialect_named(dialect, "A conversion")
    if target.name == "coatref":
        return params
    nearest: tuple[Spec, list[Obstacle]] | None = None
    for spec in sorted(candidates(params.spec, target.name), key=lambda spec: spec.name != params.spec.name):
        found = obstacles(params, spec)
        if not found:
            return params if spec == params.spec else expressed(params, spec)
        if nearest is None or len(found) < len(nearest[1]):
            nearest = spec, found
    if nearest is None:
        raise WeightsError(
            f"Spec {params.spec.name!r} cannot be represented in the dialect {dialect!r}: none of its networks has "
            f"{len(params.spec.stages)} stages of these kinds, depths and widths."
        )
    spec, found = nearest
    kinds = list(dict.fromkeys(str(obstacle._replace(path=unnumbered(obstacle.path))) for obstacle in found))
    more = f" and {len(kinds) - SHOWN} more" if len(kinds) > SHOWN else ""
    raise WeightsError(
        f"Spec {params.spec.name!r} cannot be represented in the dialect {dialect!r}; in the way, as compared with the "
        f"nearest, {spec.name!r}: {'; '.join(kinds[:SHOWN])}{more}."
    )


def unnumbered(path: str) -> str:
    """A path in the spec without the numbers of stage and run, so that what is the same in all of them is said once."""
    return path if path.startswith("tensor ") else re.sub(r"\.\d+(?=\.|$)", "", path)


def candidates(spec: Spec, dialect: str) -> Iterator[Spec]:
    """The specs of a dialect at the image size, depths, widths and classes of another spec."""
    runs = [(run.depth, run.width) for stage in spec.stages for run in stage]
    stem = [(len(spec.stem.widths), spec.stem.width)] if isinstance(spec.stem, ConvStem) else []
    for name in DIALECTS[dialect].specs():
        for sizes in (runs, stem + runs):  # some take the stem's too
            depths, widths = zip(*sizes, strict=True)
            with contextlib.suppress(CoatrefError):  # another number of runs, or sizes that have no meaning there
                yield spec_named(
                    name, image_size=spec.image_size, classes=spec.head.classes, depths=depths, widths=widths
                )
                break


def obstacles(params: Params, target: Spec) -> list[Obstacle]:
    """What keeps parameters from being those of another spec."""
    ours, theirs = plain(params.spec), plain(target)
    found: list[Obstacle] = []
    sizes: list[Obstacle] = []
    for path in dict.fromkeys([*ours, *theirs]):
        names = path.split(".")
        pair = ours.get(path), theirs.get(path)
        if pair[0] == pair[1] or any(name in SILENT for name in names) or is_bias(names) or "layer_scale" in names:
            continue
        if names[-1] == "orientation" or (names[-1] == "scale_site" and set(pair) <= set(SCALE_SITES)):
            continue
        (sizes if names[-1] in SIZES else found).append(Obstacle(path, *pair))
    tensors = tensor_obstacles(params, target)
    misshapen = [obstacle for obstacle in tensors if None not in (obstacle.ours, obstacle.theirs)]
    if misshapen and sizes:  # the fields say why
        return found + sizes + [obstacle for obstacle in tensors if obstacle not in misshapen]
    return found + tensors


def plain(spec: Spec) -> dict[str, Any]:
    """Dotted path -> value of every field of a spec that makes a difference; one that makes none is left out."""
    whole = json.loads(spec.to_json())
    for run in (run for stage in whole["stages"] for run in stage):
        if run["stride"] == 1:
            for pool in ("main_pool", "shortcut_pool"):
                run.pop(pool, None)
        if run["stride"] == 1 or run.get("stride_at") != "depthwise":
            run.pop("padding", None)  # without a stride, SAME and symmetric padding of an odd kernel are one
    return dict(flatten(whole))


def is_bias(names: list[str]) -> bool:
    """Whether a path is of the choice of having a bias; whether there is one shows in the tensors."""
    return any(name == "bias" or name.endswith("_bias") for name in names) and "relative_bias" not in names


def tensor_obstacles(params: Params, target: Spec) -> list[Obstacle]:
    """Tensors of either spec that the other has in another shape, or lacks and could not do without."""
    arrays = params.flatten()
    wanted = {name: tensor.shape for name, tensor in flatten(tensor_tree(target))}
    found = []
    for name in dict.fromkeys([*arrays, *wanted]):
        if name not in wanted:
            if not (is_zeros_bias(name) and not np.any(on_host(name, arrays[name]))):
                found.append(Obstacle(f"tensor {name}", list(arrays[name].shape), None))
        elif name not in arrays:
            if filler(name) is None:
                found.append(Obstacle(f"tensor {name}", None, list(wanted[name])))
        elif sorted(arrays[name].shape) != sorted(wanted[name]):  # a transposed table is looked at with its orientation
            found.append(Obstacle(f"tensor {name}", list(arrays[name].shape), list(wanted[name])))
    return found


def is_zeros_bias(name: str) -> bool:
    """Whether a tensor is a bias, which says nothing where it is zero."""
    return name.endswith(".b")


def filler(name: str) -> float | None:
    """What a tensor holds that is there for nothing: a bias of zeros, a layer scale of ones; None: others have no such."""
    layer, _, leaf = name.rpartition(".")
    if leaf == "b":
        return 0.0
    return 1.0 if layer.rpartition(".")[2] in ("layer_scale", "attn_scale", "ffn_scale") else None


def expressed(params: Params, target: Spec) -> Params:
    """The parameters under another spec that computes the same; see `represented`."""
    arrays = {name: on_host(name, array) for name, array in params.flatten().items()}
    kind = np.result_type(*arrays.values())
    here, there = orientations(params.spec), orientations(target)
    changed: dict[str, np.ndarray] = {}
    for name, tensor in flatten(tensor_tree(target)):
        if name in arrays:
            array = np.array(arrays[name])
            if here.get(name) != there.get(name):  # each way to store a table is its own inverse
                array = np.array(oriented(oriented(array, here[name]), there[name]))
        else:
            array = np.full(tensor.shape, filler(name), kind)
        changed[name] = sealed(np.ascontiguousarray(array))
    return from_flat(target, changed)


def orientations(spec: Spec) -> Mapping[str, Any]:
    """Name of every relative-bias table -> how it is stored."""
    return {
        f"{block.name}.attn.relative_bias.table": block.run.attention.relative_bias.orientation
        for block in spec.blocks()
        if block.run.kind == "transformer" and block.run.attention.relative_bias is not None
    }
