"""Running a torch module: weights in, images in, logits and watched values out, in a declared precision.

What a precision means on torch:

    float64, float32, and half types declared to accumulate in themselves: the module in that type.
    half types with another type of sums: `torch.autocast` to the half type around a module of float32 weights, whose
    numbers the half type holds exactly. Products are rounded to the half type, most norms and softmaxes stay in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from coatref.conformance.precision import Precision
from coatref.errors import InputError, WeightsError
from coatref.registry import missing, resolve_library
from coatref.specification.spec import Spec

HALF = ("float16", "bfloat16")
Layout = Literal["NCHW", "NHWC"]

# Values of a trace with four axes that are no images, (N, heads, H*W, D) or (N, heads, H*W, H*W).
NO_IMAGES = ("attn.q", "attn.k", "attn.v", "attn.logits", "attn.weights")


class Hook(NamedTuple):
    """One value to watch.

    Attributes:
        value: its name in a trace.
        module: path of the torch module that has it.
        at: whether it is what the module gives, or what comes into it.
        vector: whether it has one number for each image and channel, which some modules give as (N, C, 1, 1).
        part: 0, 1, 2 where it is q, k or v of a convolution that gives them as channels [head][q, k, v][D].
        head_size: D.
    """

    value: str
    module: str
    at: Literal["output", "input"] = "output"
    vector: bool = False
    part: int | None = None
    head_size: int = 0


def is_vector(value: str, spec: Spec) -> bool:
    """Whether a value of a trace has one number for each image and channel: those of the head from the pool on."""
    pooled = ("head.pool", "head.hidden", "head.hidden_act")
    return value in pooled or (value == "head.norm" and spec.head.order == "pool_then_norm")


def torch_module() -> Any:
    """The torch module.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import torch
    except ImportError:
        raise missing("torch", "torch", "A target on torch") from None
    return torch


def autocasts(precision: Precision) -> bool:
    """Whether a precision is had by autocast."""
    return precision.storage in HALF and precision.accumulate != precision.storage


def module_type(precision: Precision) -> Any:
    """The torch type of a module's weights."""
    return getattr(torch_module(), "float32" if autocasts(precision) else precision.storage)


def run_module(
    model: Any,
    state: Mapping[str, Any],
    x: np.ndarray,
    precision: Precision,
    hooks: Sequence[Hook] = (),
    layout: Layout = "NCHW",
) -> dict[str, Any]:
    """The outputs of a module.

    Args:
        model: a module in eval mode, of `module_type(precision)`; the weights are written into it.
        state: name in its state dict -> array.
        x: (N, H, W, C).
        precision: that is declared.
        hooks: values to watch.
        layout: in which it takes images, and gives values with four axes.

    Returns:
        "logits" and the watched values as NumPy arrays, channels last; what is no tensor, as it is.

    Raises:
        WeightsError: the state does not fit the module.
    """
    torch = torch_module()
    load(model, state)
    half = getattr(torch, precision.storage) if autocasts(precision) else None
    images = torch.tensor(x, dtype=module_type(precision))
    if layout == "NCHW":
        images = images.permute(0, 3, 1, 2).contiguous()  # (N, H, W, C) -> (N, C, H, W)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if half is not None:
            stack.enter_context(torch.autocast("cpu", dtype=half))
        values = stack.enter_context(watched(model, hooks, layout))
        output = model(images)
    named = output if isinstance(output, Mapping) else {"logits": output}
    return values | {name: host(name, value, layout) for name, value in named.items()}


def load(model: Any, state: Mapping[str, Any]) -> None:
    """Copy named arrays into a module; its buffers that hold no numbers (indices, counters) may be left out.

    Raises:
        WeightsError: names are missing or surplus, or shapes differ.
    """
    torch = torch_module()
    own = model.state_dict()
    missing_names = [name for name, tensor in own.items() if name not in state and tensor.is_floating_point()]
    surplus = [name for name in state if name not in own]
    misshapen = [
        f"{name} (takes {tuple(own[name].shape)}, given {tuple(array.shape)})"
        for name, array in state.items()
        if name in own and tuple(own[name].shape) != tuple(array.shape)
    ]
    problems = [
        f"{what} {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for what, names in (
            ("it has and was not given", missing_names),
            ("it was given and has not", surplus),
            ("with another shape:", misshapen),
        )
        if names
    ]
    if problems:
        raise WeightsError(
            f"The module {type(model).__name__} does not take the weights of its spec: {'; '.join(problems)}; "
            "choose the dialect of its names, give a mapping of them, or the spec that it computes."
        )
    with torch.no_grad():
        for name, array in state.items():
            if isinstance(array, np.ndarray) and own[name].dtype != torch.bfloat16 and own[name].device.type == "cpu":
                own[name].numpy()[...] = array  # several times as fast as through a tensor
            else:
                own[name].copy_(array if isinstance(array, torch.Tensor) else torch.tensor(np.asarray(array)))


@contextlib.contextmanager
def watched(model: Any, hooks: Sequence[Hook], layout: Layout) -> Iterator[dict[str, Any]]:
    """A mapping that fills with copies of the watched values while the module runs.

    Raises:
        InputError: the module has no part of a hook's name.
    """
    values: dict[str, Any] = {}

    def take(hook: Hook, value: Any) -> None:
        if hook.part is not None:
            values[hook.value] = heads(value, hook.part, hook.head_size)
        else:
            values[hook.value] = host(hook.value, value.flatten(1) if hook.vector else value, layout)

    def listen(hook: Hook) -> Any:
        module = submodule(model, hook)
        if hook.at == "input":
            return module.register_forward_pre_hook(lambda _, arguments: take(hook, arguments[0]))
        return module.register_forward_hook(lambda _, arguments, output: take(hook, output))

    handles = [listen(hook) for hook in hooks]
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()


def submodule(model: Any, hook: Hook) -> Any:
    """The part of a module that a hook names.

    Raises:
        InputError: there is none.
    """
    try:
        return model.get_submodule(hook.module)
    except AttributeError as error:
        raise InputError(
            f"The value {hook.value!r} should be taken from the part {hook.module!r} of {type(model).__name__}, which "
            f"has none of that name ({error}); name the parts as model.named_modules() does."
        ) from None


def host(name: str, value: Any, layout: Layout) -> Any:
    """A tensor as a new NumPy array, an image (N, C, H, W) with its channels last; what is no tensor, as it is."""
    if not isinstance(value, torch_module().Tensor):
        return value
    if layout == "NCHW" and value.ndim == 4 and not name.endswith(NO_IMAGES):
        value = value.permute(0, 2, 3, 1)
    return np.array(resolve_library("torch").to_numpy(value), order="C")


def heads(value: Any, part: int, size: int) -> np.ndarray:
    """q, k or v of fused ones. Shapes: (N, heads * 3 * D, H, W) -> (N, heads, H*W, D)."""
    n, channels, height, width = value.shape
    split = value.reshape(n, channels // (3 * size), 3, size, height * width)[:, :, part]  # (N, heads, D, H*W)
    return np.array(resolve_library("torch").to_numpy(split.transpose(2, 3)), order="C")
