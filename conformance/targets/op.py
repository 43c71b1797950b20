"""`op:PRIMITIVE=...`: a single primitive, for kernel authors.

    op:relative_attention=package.module:function
    op:relative_attention=cmd:"./prog {input} {output}"

A function takes the definition's arguments as NumPy arrays. A program reads one safetensors file, whose tensors are named
like the arguments ("q", "k", "v", "bias", "key_mask"; trees with points: "reduce.w", "p.attn.q.w") and whose metadata has
"op", the primitive's name, and every other argument and option as JSON text under its name ("scale": "0.5", "padding":
"\\"same\\"", "block": {"input_width", "stride", "run"}). It writes one with the tensor "y".
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coatref.conformance.precision import Precision, declared
from coatref.conformance.primitive_cases import Call
from coatref.conformance.report.results import Report
from coatref.conformance.target import Target
from coatref.conformance.targets.command import command_words, run_program, said, timeout_from, with_log
from coatref.conformance.targets.user_code import importable_from_here
from coatref.conformance.tensor_files import read_tensors, write_tensors
from coatref.errors import InputError
from coatref.params import Params
from coatref.specification.fields import to_plain
from coatref.specification.spec import Block, Spec

ARGUMENTS: dict[str, tuple[str, ...]] = {  # names of the positional arguments
    "conv2d": ("x", "w", "b"),
    "depthwise_conv2d": ("x", "w", "b"),
    "dense": ("x", "w", "b"),
    "max_pool": ("x",),
    "avg_pool": ("x",),
    "global_avg_pool": ("x",),
    "batch_norm": ("x", "gamma", "beta", "mean", "var"),
    "layer_norm": ("x", "gamma", "beta"),
    "activation": ("x", "kind"),
    "softmax": ("x",),
    "squeeze_excite": ("x", "reduce", "expand"),
    "gather_bias": ("table", "height", "width"),
    "relative_attention": ("q", "k", "v", "bias"),
    "linear_attention": ("q", "k", "v"),
    "mbconv": ("p", "x", "block"),
    "transformer": ("p", "x", "block"),
}


def make(
    argument: str,
    *,
    spec: Spec | None = None,
    weights: Params | None = None,
    precision: Precision | None = None,
    options: Mapping[str, str] | None = None,
) -> Target:
    """A primitive is no network, so there is no such target; `judge` judges it.

    Raises:
        InputError: always.
    """
    raise InputError(
        f"op:{argument:.200} is a single primitive and not a network; judge it alone, with: coatref check."
    )


def judge(
    text: str,
    *,
    dtype: str = "float32",
    accumulate: str | None = None,
    level: str = "default",
    seed: int = 0,
    only: Mapping[str, Any] | None = None,
    options: Mapping[str, str] | None = None,
) -> Report:
    """Judge the primitive that a text names.

    Args:
        text: as in the module's description, with or without "op:".
        dtype, accumulate, level, seed, only: as in `primitive_judge.check_primitive`.
        options: "timeout", seconds that one run of a program may take.

    Raises:
        InputError: the text names no primitive, or nothing that can be called.
        MissingDependencyError: see `check_primitive`.
    """
    from coatref.conformance.primitive_judge import check_primitive

    name, _ = split(text)
    function = candidate(text, storage=declared(dtype, accumulate).storage, options=options)
    target = f"op:{text.removeprefix('op:')}"
    return check_primitive(
        name, function, dtype=dtype, accumulate=accumulate, level=level, seed=seed, only=only, target=target
    )


def split(text: str) -> tuple[str, str]:
    """The primitive's name and what computes it.

    Raises:
        InputError: the text is not of that form, or there is no such primitive.
    """
    from coatref.conformance.primitive_judge import primitive_name

    name, equals, rest = text.removeprefix("op:").partition("=")
    if not equals or not rest:
        raise InputError(
            f"{text!r:.200} does not name a primitive and what computes it; write it as in "
            "op:relative_attention=package.module:function"
        )
    return primitive_name(name), rest


def candidate(text: str, *, storage: str = "float32", options: Mapping[str, str] | None = None) -> Callable[..., Any]:
    """What computes the primitive that a text names, as a function.

    Raises:
        InputError: it cannot be imported, or its command lacks {input} or {output}.
    """
    name, rest = split(text)
    if rest.startswith("cmd:"):
        return program(name, rest.removeprefix("cmd:"), storage, timeout_from(options or {}))
    return imported(rest)


def imported(place: str) -> Callable[..., Any]:
    """The function at "package.module:function".

    Raises:
        InputError: there is no such module or function.
    """
    module, _, attribute = place.partition(":")
    try:
        with importable_from_here():
            found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{place!r:.200} names no function that can be imported ({type(error).__name__}: {error}); write it as "
            "package.module:function."
        ) from error
    if not callable(found):
        raise InputError(f"{place!r:.200} is a {type(found).__name__}, which cannot be called.")
    function: Callable[..., Any] = found
    return function


def program(name: str, command: str, storage: str, timeout: float) -> Callable[..., Any]:
    """A program as a function of the primitive's arguments."""
    words = command_words(command, ("{input}", "{output}"))

    def run(*args: Any, **options: Any) -> np.ndarray:
        call = Call(dict(zip(ARGUMENTS[name], args, strict=False)), options)
        metadata = {"op": name} | {key: json.dumps(plain(value)) for key, value in call.plain().items()}
        with tempfile.TemporaryDirectory(prefix="coatref-") as folder:
            files = {key: Path(folder) / f"{key[1:-1]}.safetensors" for key in ("{input}", "{output}")}
            write_tensors(files["{input}"], call.arrays(), storage, metadata)
            log = run_program(words, files, timeout)
            tensors, _ = with_log(log, lambda: read_tensors(files["{output}"]), words[0])
        if "y" not in tensors:
            held = ", ".join(sorted(tensors)[:8]) or "none at all"
            raise InputError(f"What {words[0]} wrote has no tensor 'y', only {held}.{said(log)}")
        return tensors["y"]

    return run


def plain(value: Any) -> Any:
    """An argument as JSON can hold it."""
    if isinstance(value, Block):
        return {"input_width": value.input_width, "stride": value.stride, "run": to_plain(value.run)}
    return value
