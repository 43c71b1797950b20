"""Mistakes in the convolutions of MBConv and ConvNeXt blocks: expansion, depthwise convolution, shrinking, strides."""

from __future__ import annotations

import dataclasses
from typing import Any

from coatref import ops
from coatref.conformance.mistakes.changed import Changed
from coatref.conformance.mistakes.edits import (
    Change,
    blocks_of,
    by_fields,
    mark,
    reading,
    require,
    respec,
    where_marked,
    with_fields,
)
from coatref.conformance.mistakes.mistake import Mistake
from coatref.conformance.mistakes.stem import later, with_edges
from coatref.ops.window import pad_axis
from coatref.primitives import Form
from coatref.registry import Array, namespace
from coatref.specification.grids import padding_amounts
from coatref.specification.parts import LAYER_NORM, ConvNeXt, MBConv, Pool

BLOCK = r"s\d+\.\d+\."
TABLE_9 = "Eq. (5) strides the first 1x1 convolution; "


def mistakes() -> tuple[Mistake, ...]:
    """All of them."""
    return (*strides(), *expansions(), *depthwise(), *shrinking())


def strides() -> tuple[Mistake, ...]:
    """Where a block strides, and from which position on."""
    words = {
        "expand": "the first 1x1 convolution of MBConv",
        "depthwise": "the depthwise convolution",
        "pool": "an average pool before the first 1x1 convolution of MBConv",
    }
    whose = {
        "expand": TABLE_9 + "timm and google stride the depthwise convolution or pool",
        "depthwise": TABLE_9 + "Table 9's other form is the default of google, timm, kecam and torchvision",
        "pool": TABLE_9 + "timm's coatnet_nano_rw and coatnet_0_rw pool",
    }

    def stride(at: str) -> Mistake:
        pool = Pool(kind="avg", padding="valid") if at == "pool" else None
        changes: dict[str, Any] = {"MBConv.stride_at": at, "MBConv.main_pool": pool}
        made = by_fields(
            f"stride-at-{at}", "expansion", f"strides at {words[at]}, not where the spec does", whose[at], changes
        )
        return dataclasses.replace(made, change=unless_there(made.change, at))

    def unless_there(change: Change, at: str) -> Change:
        def checked(changed: Changed) -> Changed:
            runs = [b.run for b in blocks_of(changed.spec, MBConv) if b.stride == 2]
            there = any(isinstance(run, MBConv) and run.stride_at != at for run in runs)
            require(changed, there, f"MBConv stride anywhere but at {at!r}")
            return change(changed)

        return checked

    return (
        *[stride(at) for at in words],
        Mistake(
            "expand-stride-phase",
            "expansion",
            "takes the odd positions, not the even ones, at the strided 1x1 convolution of MBConv",
            "a common slip: x[:, 1::2, 1::2]",
            expand_phase,
        ),
        Mistake(
            "depthwise-stride-phase",
            "depthwise convolution",
            "begins one position later at the strided depthwise convolution",
            "a common slip: padding on the wrong side",
            depthwise_phase,
        ),
    )


def expand_phase(changed: Changed) -> Changed:
    """A pool of one position in place of the stride, marked, and a form for it that takes the odd positions."""
    label = "expand-stride-phase"
    strided = [b.run for b in blocks_of(changed.spec, MBConv) if b.stride == 2]
    here = any(isinstance(run, MBConv) and run.stride_at == "expand" for run in strided)
    require(changed, here, "strided 1x1 convolution in MBConv")
    one = Pool(size=mark(label)(1))

    def make(run: Any) -> Any:
        if not isinstance(run, MBConv) or run.stride_at != "expand" or run.stride == 1:
            return run
        return dataclasses.replace(run, stride_at="pool", main_pool=one)

    def odd(x: Array, **_: Any) -> Array:
        """(N, H, W, C) -> (N, ceil(H/2), ceil(W/2), C), zeros where a row is missing."""
        return later(later(x, 1), 2)[:, ::2, ::2, :]

    stages = tuple(tuple(make(run) for run in stage) for stage in changed.spec.stages)
    form = where_marked(label, "size", changed.forms.max_pool, odd)
    return changed.but(
        spec=changed.spec.replace(stages=stages), forms=dataclasses.replace(changed.forms, max_pool=form)
    )


def depthwise_phase(changed: Changed) -> Changed:
    """The strided depthwise convolution on a grid moved by one."""
    runs = [b.run for b in blocks_of(changed.spec, MBConv, ConvNeXt) if b.stride == 2]
    here = any(isinstance(run, (MBConv, ConvNeXt)) and run.stride_at == "depthwise" for run in runs)
    require(changed, here, "strided depthwise convolution")
    original = changed.forms.depthwise_conv2d

    def convolve(x: Array, *args: Any, stride: int = 1, **kwargs: Any) -> Array:
        return original(later(later(x, 1), 2) if stride == 2 else x, *args, stride=stride, **kwargs)

    return changed.but(forms=dataclasses.replace(changed.forms, depthwise_conv2d=convolve))


def expansions() -> tuple[Mistake, ...]:
    """The width of the expansion, and what stands around it."""
    silent = "Sec. 2.2 says 4 times and not of which width; "
    return (
        *[
            by_fields(
                f"expansion-of-{base}",
                "expansion",
                f"expands to a multiple of the {base} width of an MBConv block, not of the other",
                silent
                + "google, timm's coatnet_N and torchvision take the output, kecam, hw666 and chinhsuanwu the input",
                {"MBConv.expansion_from": base},
            )
            for base in ("input", "output")
        ],
        *[
            by_fields(
                f"expansion-{factor}",
                "expansion",
                f"expands {factor} times in MBConv, not as the spec says",
                "Sec. 2.2: 4 times; EfficientNet expands 6 times, xmu-xiaoma666 and early lucidrains not at all",
                {"MBConv.expansion": float(factor)},
            )
            for factor in (1, 6)
        ],
        Mistake(
            "expand-bias-ignored",
            "expansion",
            "does not add the bias of the first 1x1 convolution of MBConv",
            "most implementations have no such bias, as BatchNorm follows",
            lambda changed: reading(changed, BLOCK + r"expand\.b", lambda name, b: b * 0.0),
        ),
    )


def with_depthwise(wrap: Any) -> Change:
    """A change of the depthwise convolution of every block."""

    def change(changed: Changed) -> Changed:
        runs = [block.run for block in blocks_of(changed.spec, MBConv, ConvNeXt)]
        here = any(isinstance(run, (MBConv, ConvNeXt)) and run.kernel > 1 for run in runs)
        require(changed, here, "depthwise convolution of several positions")
        form = wrap(changed.forms.depthwise_conv2d)
        return changed.but(forms=dataclasses.replace(changed.forms, depthwise_conv2d=form))

    return change


def on_kernels(edit: Any) -> Change:
    """A change of all depthwise kernels."""

    def wrap(form: Form) -> Form:
        return lambda x, w, b=None, **kwargs: form(x, edit(w), b, **kwargs)

    return with_depthwise(wrap)


def depthwise() -> tuple[Mistake, ...]:
    """The depthwise convolution."""
    site = "depthwise convolution"
    words = {"symmetric": "one row on each side", "same": "TensorFlow's SAME, an odd row at the end"}
    return (
        *[
            by_fields(
                f"depthwise-padding-{kind}",
                site,
                f"pads the strided depthwise convolution with {words[kind]}, not as the spec says",
                "Eq. (1) is silent; TensorFlow code (google, hw666) pads SAME, torch code (timm, chinhsuanwu) symmetrically",
                {"MBConv.padding": kind, "ConvNeXt.padding": kind},
            )
            for kind in words
        ],
        *[
            Mistake(
                f"depthwise-padding-{mode}",
                site,
                f"pads the depthwise convolution by {mode} padding, not with zeros",
                "a common slip: padding_mode of torch's convolutions",
                with_depthwise(lambda form, mode=mode: with_edges(form, mode)),
            )
            for mode in ("replicate", "reflect")
        ],
        Mistake(
            "depthwise-padding-before-norm",
            site,
            "pads with zeros before norm and activation, so that the depthwise convolution sees their values there, not 0",
            "a common slip: an explicit padding layer in the wrong place, or BatchNorm folded across it",
            padded_early,
        ),
        Mistake(
            "depthwise-kernel-flipped",
            site,
            "flips the depthwise kernels, a convolution in the mathematical sense, not a correlation",
            "Eq. (1) is a correlation; scipy.signal.convolve flips",
            on_kernels(lambda w: namespace(w).flip(w, axis=(0, 1))),
        ),
        Mistake(
            "depthwise-kernel-transposed",
            site,
            "reads the depthwise kernels with height and width swapped",
            "a common slip in conversion of weights",
            on_kernels(lambda w: namespace(w).permute_dims(w, (1, 0, 2))),
        ),
        Mistake(
            "depthwise-kernel-centre-only",
            site,
            "leaves out the spatial extent of the depthwise convolution and uses the centre of its kernel only",
            "a common slip: kernel size 1",
            on_kernels(centre),
        ),
        Mistake(
            "depthwise-bias-ignored",
            site,
            "does not add the bias of the depthwise convolution",
            "timm's ConvNeXt blocks have this bias, MBConv blocks have none anywhere",
            lambda changed: reading(changed, BLOCK + r"depthwise\.b", lambda name, b: b * 0.0),
        ),
    )


def centre(w: Array) -> Array:
    """A kernel without all but its centre. Shapes: (kh, kw, C) -> the same."""
    kh, kw, _ = w.shape
    row, column = (kh - 1) // 2, (kw - 1) // 2
    w = pad_axis(w[row : row + 1, column : column + 1, :], 0, row, kh - 1 - row, 0.0)
    return pad_axis(w, 1, column, kw - 1 - column, 0.0)


def padded_early(changed: Changed) -> Changed:
    """Depthwise convolutions that stand what norm and activation make of 0 in their padding.

    That value of each channel travels as the bias of the convolution, which MBConv blocks do not have.
    """
    runs = [block.run for block in blocks_of(changed.spec, MBConv)]
    free = all(isinstance(run, MBConv) and not run.depthwise_bias and run.kernel > 1 for run in runs)
    alone = not blocks_of(changed.spec, ConvNeXt)
    require(changed, bool(runs) and free and alone, "MBConv depthwise convolution without bias")
    epsilons = {
        block.name: block.run.inner_norm.epsilon for block in changed.spec.blocks() if isinstance(block.run, MBConv)
    }
    kinds = {block.name: block.run.activation for block in changed.spec.blocks() if isinstance(block.run, MBConv)}
    before, original = changed.read, changed.forms.depthwise_conv2d

    def read(flat: Any) -> Any:
        old = dict(before(flat))
        for name, epsilon in epsilons.items():
            value = old[f"{name}.expand_norm.beta"]  # what a LayerNorm makes of zeros
            if f"{name}.expand_norm.var" in old:
                norm = {part: old[f"{name}.expand_norm.{part}"] for part in ("gamma", "beta", "mean", "var")}
                value = ops.batch_norm(value * 0.0, **norm, epsilon=epsilon)
            old[f"{name}.depthwise.b"] = ops.activation(value, kinds[name])
        return old

    def convolve(x: Array, w: Array, b: Array, *, stride: int = 1, padding: Any = "same") -> Array:
        rows, columns = (padding_amounts(x.shape[axis], w.shape[axis - 1], stride, padding) for axis in (1, 2))
        inner = pad_axis(pad_axis(x - b, 1, *rows, 0.0), 2, *columns, 0.0) + b
        return original(inner, w, stride=stride, padding="valid")

    spec = with_fields(changed.spec, {"MBConv.depthwise_bias": True})
    return changed.but(spec=spec, read=read, forms=dataclasses.replace(changed.forms, depthwise_conv2d=convolve))


def shrinking() -> tuple[Mistake, ...]:
    """The last 1x1 convolution."""

    return (
        by_fields(
            "shrink-bias-ignored",
            "shrink",
            "does not add the bias of the last 1x1 convolution of MBConv",
            "google, hw666 and timm's nano models have this bias, kecam, chinhsuanwu and timm's coatnet_0_rw have none",
            {"MBConv.shrink_bias": False},
        ),
        Mistake(
            "shrink-norm-added",
            "shrink",
            "standardises each position after the last 1x1 convolution of MBConv, where nothing stands",
            "chinhsuanwu, its copies and hosein have a norm there",
            shrink_normed,
        ),
        by_fields(
            "shrink-norm-missing",
            "shrink",
            "has no norm after the last 1x1 convolution of MBConv",
            "chinhsuanwu has one, the others have none",
            {"MBConv.shrink_norm": None},
        ),
    )


def shrink_normed(changed: Changed) -> Changed:
    """A LayerNorm without parameters behind each MBConv branch."""
    runs = [block.run for block in blocks_of(changed.spec, MBConv)]
    bare = all(isinstance(run, MBConv) and run.shrink_norm is None for run in runs)
    require(changed, bool(runs) and bare, "MBConv without a norm at its end")
    return respec(changed, lambda spec: with_fields(spec, {"MBConv.shrink_norm": LAYER_NORM}))
