"""`timm:coatnet_0_rw_224`: a model of timm, with the parameters written into it and its inner values watched.

Precision is as for every torch module (`coatref.conformance.targets.modules`); on a CPU autocast takes both bfloat16 and
float16 (torch 2.13; float16 is slow there). The log-spaced coordinates of timm's `rmlp` models are a buffer that timm
computes in float32 whatever the model's type; in float64 they are put in anew here in float64, since their rounding
alone makes the logits differ by about 1e-10.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from coatref.conformance.precision import Precision
from coatref.conformance.target import Output, Target
from coatref.conformance.targets import timm_import
from coatref.conformance.targets.modules import module_type, run_module, torch_module
from coatref.conformance.targets.spelling import command, refuse_options, versions
from coatref.conformance.targets.timm_values import hooks
from coatref.errors import InputError
from coatref.params import Params
from coatref.registry import missing
from coatref.specification import timm as timm_specs
from coatref.specification.catalogue import spec as named_spec
from coatref.specification.parts import ConvStem, Run, Transformer
from coatref.specification.spec import Spec
from coatref.weights.export import views
from coatref.weights.timm import IGNORED, expected


def make(
    argument: str,
    *,
    spec: Spec | None = None,
    weights: Params | None = None,
    precision: Precision | None = None,
    options: Mapping[str, str] | None = None,
) -> Target:
    """A model of timm as a target; by default as what it is there, the spec "timm/NAME".

    Raises:
        InputError: coatref has no spec of that name, or timm cannot build the model for the spec given.
        MissingDependencyError: timm is not installed.
    """
    refuse_options("timm", options or {})
    own = f"timm/{argument.partition('.')[0]}"  # timm's tags of weights, as in coatnet_0_rw_224.sw_in1k, change nothing
    if own not in timm_specs.names():
        similar = difflib.get_close_matches(own, timm_specs.names(), n=3, cutoff=0.5)
        raise InputError(
            f"The target 'timm:{argument:.100}' was asked for, and there is no spec {own!r:.100}; similar names: "
            f"{', '.join(similar) or 'none'} (coatref.specs() lists them all)."
        )
    return timm_target(argument, named_spec(own), spec, weights, precision or Precision())


def timm_target(argument: str, own: Spec, asked: Spec | None, weights: Params | None, precision: Precision) -> Target:
    """The target for one spec, with a model built once; it makes those for other specs of the same conventions."""
    spec = asked or own
    model = build(argument, own, spec, precision)
    watch = tuple(hooks(spec))

    def run(params: Params, x: np.ndarray) -> Output:
        return run_module(model, views(params, "timm"), x, precision, watch)

    return Target(
        name=f"timm:{argument}",
        spec=spec,
        precision=precision,
        run=run,
        params=weights,
        variant=lambda other: timm_target(argument, own, other, None, precision),
        command=command(f"timm:{argument}", spec=asked if asked != own else None, precision=precision, options={}),
        versions=versions("torch", "timm"),
    )


def build(name: str, own: Spec, spec: Spec, precision: Precision) -> Any:
    """timm's model in eval mode, of the type that a precision needs.

    Args:
        name: of the model in timm.
        own: its spec.
        spec: what to build: its spec, or one of the same conventions in another size.

    Raises:
        InputError: timm cannot build it.
        MissingDependencyError: timm is not installed.
    """
    sizes = arguments(name, own, spec)
    timm, torch = timm_module(), torch_module()
    try:
        with torch.random.fork_rng(devices=[]):  # timm draws weights from torch's global generator
            model = timm.create_model(name, pretrained=False, **sizes)
    except Exception as error:
        raise InputError(
            f"timm {timm.__version__} cannot build {name!r:.100} for the spec given ({type(error).__name__}: "
            f"{str(error)[:200]})."
        ) from error
    found = {key: tuple(value.shape) for key, value in model.state_dict().items() if not key.endswith(IGNORED)}
    differing = sorted(set(found.items()) ^ set(expected(spec).items()))
    if differing:
        raise InputError(
            f"timm {timm.__version__} builds {name!r:.100} for the spec given with other tensors than it has: "
            f"{', '.join(f'{key} {shape}' for key, shape in differing[:4])}; its image size {spec.image_size} may be one "
            "that timm and the spec take differently."
        )
    model = model.to(module_type(precision)).eval()
    if precision.storage == "float64":
        for module in model.modules():
            if hasattr(module, "rel_coords_log"):
                module.rel_coords_log.copy_(log_coordinates(*module.window_size))
    return model


def timm_module() -> ModuleType:
    """The timm module.

    Raises:
        MissingDependencyError: it, or torch, is not installed.
    """
    torch_module()
    try:
        return timm_import.timm()
    except ModuleNotFoundError:
        raise missing("timm", "timm", "A timm: target") from None


def log_coordinates(height: int, width: int) -> Any:
    """sign(d) ln(1 + |d|) of every offset of a grid, (2H-1, 2W-1, 2) in float64, as timm defines them."""
    torch = torch_module()
    offsets = [torch.arange(1 - side, side, dtype=torch.float64) for side in (height, width)]
    grid = torch.stack(torch.meshgrid(*offsets, indexing="ij"), dim=-1)
    return torch.sign(grid) * torch.log(1.0 + torch.abs(grid))


def arguments(name: str, own: Spec, spec: Spec) -> dict[str, Any]:
    """What `timm.create_model` takes to build a model for a spec.

    Raises:
        InputError: the spec differs from the model's own in more than sizes and the kinds of its blocks.
    """
    different = [part for part, same in conventions(own, spec) if not same]
    if different:
        raise InputError(
            f"The target 'timm:{name:.100}' cannot be had for spec {spec.name!r}, which differs from {own.name!r} in "
            f"{', '.join(different)}; it takes other image sizes, channels, classes, depths and widths only."
        )
    sizes: dict[str, Any] = {
        "img_size": spec.image_size,
        "in_chans": spec.channels,
        "num_classes": spec.head.classes,
        "embed_dim": tuple(stage[0].width for stage in spec.stages),
        "depths": tuple(sum(run.depth for run in stage) for stage in spec.stages),
        "block_type": tuple(letters(stage) for stage in spec.stages),
    }
    if isinstance(spec.stem, ConvStem):
        sizes["stem_width"] = spec.stem.widths
    if spec.head.hidden is not None:
        sizes["head_hidden_size"] = spec.head.hidden.width or spec.width
    return sizes


def letters(stage: tuple[Run, ...]) -> tuple[str, ...]:
    """timm's letter for every block of a stage."""
    return tuple("T" if isinstance(run, Transformer) else "C" for run in stage for _ in range(run.depth))


def conventions(own: Spec, spec: Spec) -> list[tuple[str, bool]]:
    """Each part of a spec, and whether it follows the conventions of a model's own spec."""
    found = [("its stem", isinstance(spec.stem, ConvStem) and len(spec.stem.widths) == 2)]
    if isinstance(spec.stem, ConvStem) and isinstance(own.stem, ConvStem):
        found.append(("its stem", own.stem == dataclasses.replace(spec.stem, widths=own.stem.widths)))
    known = [unsized(run) for stage in own.stages for run in stage]
    for number, stage in enumerate(spec.stages, start=1):
        for position, run in enumerate(stage):
            found.append((f"the {run.kind} blocks of s{number}", unsized(run) in known))
            fits = run.stride == (2 if position == 0 else 1) and run.width == stage[0].width
            found.append((f"strides or widths of s{number}", fits))
    head = dataclasses.replace(spec.head, classes=own.head.classes)
    if own.head.hidden is not None and head.hidden is not None:
        hidden = dataclasses.replace(head.hidden, width=own.head.hidden.width)
        head = dataclasses.replace(head, hidden=hidden)
    return list(dict.fromkeys([*found, ("its head", head == own.head)]))


def unsized(run: Run) -> Run:
    """A run with its depth, width and stride set to fixed ones."""
    if isinstance(run, Transformer):
        return dataclasses.replace(run, depth=1, width=run.attention.head_size, stride=2)
    return dataclasses.replace(run, depth=1, width=32, stride=2)
