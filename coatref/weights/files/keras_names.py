"""Names of weights in files of Keras, as "LAYER/LEAF".

Keras 2 (and Keras 3 in its old format) has a group for each layer, and in it its weights under their names, which most often
begin with the layer's again: `/stem_1_conv/stem_1_conv/kernel:0`, all of it under `/model_weights` in a file of a whole
model. That is "stem_1_conv/kernel".

Keras 3 has a group for each layer by its class, counted where there are more, and in it its weights by numbers:
`/layers/conv2d_1/vars/0`. An attribute of `vars` tells the layer's name in newer versions, the configuration in a `.keras`
archive; what the numbers mean follows from the class, or from how many weights there are and their shapes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coatref.errors import FileFormatError
from coatref.weights.files.hdf5_objects import DEEPEST
from coatref.weights.files.limits import LONGEST_NAME
from coatref.weights.files.stored import Stored, Tensors

Path = tuple[str, ...]
Shape = tuple[int, ...]

OPTIMIZER, OPTIMIZER_WEIGHTS = "optimizer", "optimizer_weights"  # groups of its state, in Keras 3 and 2
SEED = "seed_generator"  # a part of a dropout layer, whose only variable is the state of a generator
LAYERS = ("layers", "_layer_checkpoint_dependencies")  # groups of layers by their classes

NORM = ("gamma", "beta")
BATCH_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
LEAVES: dict[str, tuple[str, ...]] = {  # a class as groups are named by it -> the weights it has when it has all
    "conv1d": ("kernel", "bias"),
    "conv2d": ("kernel", "bias"),
    "conv3d": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "einsum_dense": ("kernel", "bias"),
    "depthwise_conv2d": ("depthwise_kernel", "bias"),
    "batch_normalization": BATCH_NORM,
    "sync_batch_normalization": BATCH_NORM,
    "layer_normalization": NORM,
    "group_normalization": NORM,
    "embedding": ("embeddings",),
    "multi_head_relative_positional_embedding": ("positional_embedding",),  # of keras_cv_attention_models
}
WITHOUT_BIAS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("kernel", "bias"): ("kernel",),
    ("depthwise_kernel", "bias"): ("depthwise_kernel",),
}


def unused(path: Path) -> bool:
    """Whether a dataset is no weight: a part of the optimizer's state, or the state of a generator of random numbers."""
    if is_numbered(path):
        return path[0] == OPTIMIZER or (len(path) > 2 and path[-3].startswith(SEED))
    return path[:1] == (OPTIMIZER_WEIGHTS,)


def is_numbered(path: Path) -> bool:
    """Whether the path of a dataset is one of Keras 3, .../vars/NUMBER."""
    return path[-2:-1] == ("vars",) and path[-1].isdecimal() and path[-1].isascii() and len(path[-1]) < 5


def plain_names(found: Mapping[Path, Stored], layers: Mapping[Path, str]) -> Tensors:
    """Datasets by their plain names.

    Args:
        found: path in the file -> dataset.
        layers: path of a group of Keras 3 -> the layer's name.

    Raises:
        FileFormatError: a name cannot be told, or two are the same; the message is a part of a sentence.
    """
    numbered: dict[Path, dict[int, Stored]] = {}
    named: dict[str, Stored] = {}
    for path, tensor in found.items():
        if is_numbered(path):
            numbered.setdefault(path[:-2], {})[int(path[-1])] = tensor
        else:
            add(named, keras_2_name(path), tensor)
    for group, variables in numbered.items():
        layer = layer_name(group, layers)
        ordered = [variables[index] for index in sorted(variables)]
        if sorted(variables) != list(range(len(variables))):
            raise FileFormatError(f"the variables of its group {'/'.join(group)!r:.100} are not numbered from 0 on")
        for leaf, tensor in zip(leaves(group, [tensor.shape for tensor in ordered]), ordered, strict=True):
            add(named, f"{layer}/{leaf}", tensor)
    return dict(named)


def add(named: dict[str, Stored], name: str, tensor: Stored) -> None:
    """Put a tensor under its plain name.

    Raises:
        FileFormatError: there is one already, or the name is long; the message is a part of a sentence.
    """
    if name in named or len(name) > LONGEST_NAME:
        raise FileFormatError(
            f"it has two datasets that mean {name!r:.100}, or a longer name than {LONGEST_NAME} characters"
        )
    named[name] = replace(tensor, name=name)


def keras_2_name(path: Path) -> str:
    """The plain name of a dataset by its path in a file of Keras 2: ("a", "a", "kernel:0") is "a/kernel"."""
    if path[:1] == ("model_weights",):
        path = path[1:]
    if len(path) > 2 and path[0] == path[1]:
        path = path[1:]
    return re.sub(r":\d+$", "", "/".join(path), flags=re.ASCII)


def layer_name(group: Path, layers: Mapping[Path, str]) -> str:
    """The name of a layer by its group in a file of Keras 3, behind those of the layers that it is in, but for the model's.

    Raises:
        FileFormatError: nothing tells it; the message is a part of a sentence.
    """
    parts = []
    for length in range(1, len(group) + 1):
        if group[length - 1] in LAYERS:
            continue
        if group[:length] in layers:
            parts.append(layers[group[:length]])
        elif group[length - 2 : length - 1] in [(each,) for each in LAYERS] and length > 1:
            raise FileFormatError(
                f"its layers are numbered by their classes ({'/'.join(group)[:100]}) and nothing tells their names; save "
                "the model as .keras or .h5, or with a newer Keras 3"
            )
        else:
            parts.append(group[length - 1])  # an attribute of a layer or model of a class of its own
    return "/".join(parts) or "model"


def leaves(group: Path, shapes: list[Shape]) -> tuple[str, ...]:
    """Names of the variables of a layer, by its class or else by their shapes.

    Raises:
        FileFormatError: neither tells; the message is a part of a sentence.
    """
    full = LEAVES.get(re.sub(r"_\d+$", "", group[-1], flags=re.ASCII) if group else "")
    if full is None:
        full = by_shapes(shapes)
    elif len(shapes) < len(full):
        full = WITHOUT_BIAS.get(full)
    if full is None or len(full) != len(shapes):
        raise FileFormatError(
            f"its group {'/'.join(group)!r:.100} has {len(shapes)} variables of shapes {shapes[:5]}, and what they are "
            "cannot be told; save the model as .h5, which has their names"
        )
    return full


def by_shapes(shapes: list[Shape]) -> tuple[str, ...] | None:
    """Names of variables of shapes that only one kind of layer has, None where it may be several."""
    ranks = [len(shape) for shape in shapes]
    if ranks == [1, 1, 1, 1] and len(set(shapes)) == 1:
        return BATCH_NORM
    if ranks == [1, 1] and len(set(shapes)) == 1:
        return NORM
    if ranks in ([2, 1], [4, 1]) and shapes[0][-1] == shapes[1][0] != 1:
        return ("kernel", "bias")
    if ranks == [4] and shapes[0][-1] != 1:  # a depthwise kernel ends in 1
        return ("kernel",)
    return None


def layer_names(config: Any) -> dict[Path, str]:
    """Path of a group -> the layer's name, by the configuration of a model.

    Layers are numbered as Keras 3 does when it saves them: by their class, in the order of the configuration.
    """
    found: dict[Path, str] = {}
    todo: list[tuple[Path, Any]] = [((container,), config) for container in LAYERS]  # a file has either of them
    while todo:
        path, model = todo.pop()
        content = model.get("config") if isinstance(model, dict) else None
        layers = content.get("layers") if isinstance(content, dict) else None
        counts: Counter[str] = Counter()
        for layer in layers if isinstance(layers, list) and len(path) < DEEPEST else ():
            kind = layer.get("class_name") if isinstance(layer, dict) else None
            inner = layer.get("config") if isinstance(layer, dict) else None
            name = inner.get("name") if isinstance(inner, dict) else None
            if not isinstance(kind, str) or not isinstance(name, str):
                continue
            group = snake_case(kind)
            counts[group] += 1
            place = (*path, group if counts[group] == 1 else f"{group}_{counts[group] - 1}")
            found[place] = name
            todo.append(((*place, path[0]), layer))
    return found


def snake_case(name: str) -> str:
    """The name of a class as Keras names groups by it: "DepthwiseConv2D" -> "depthwise_conv2d"."""
    words = re.sub(r"(?<=[^\W_])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", re.sub(r"\W", "", name))
    return words.lower()
