"""`kecam:CoAtNet0`: a CoAtNet of keras_cv_attention_models, computed by its torch backend.

It gives most values of a trace beside the logits. The model is built without pretrained weights, for the spec's image size, and without the softmax that the package puts
behind the classifier unless told otherwise (with it where the spec's head says "probabilities"). It runs in eval mode.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from coatref.conformance.precision import Precision
from coatref.conformance.target import Target
from coatref.conformance.targets.modules import Hook, module_type, run_module, torch_module
from coatref.conformance.targets.spelling import command, refuse_options, versions
from coatref.errors import InputError, MissingDependencyError
from coatref.params import Params, refuse_misfits
from coatref.specification import kecam as specs
from coatref.specification.catalogue import spec as named_spec
from coatref.specification.parts import ConvStem, MBConv, Transformer
from coatref.specification.spec import Spec
from coatref.weights import kecam as names
from coatref.weights.export import views

PACKAGE = "keras_cv_attention_models"
BACKEND = "KECAM_BACKEND"  # the environment variable that the package reads when it is first imported

# Value of a trace, inside a block -> our name of the layer that gives it, or that it comes into.
MBCONV_OUTPUTS = {name: name for name in ("pre_norm", "expand", "expand_norm", "depthwise", "depthwise_norm", "shrink")}
MBCONV_INPUTS = {"expand_act": "depthwise", "se": "shrink"}
TRANSFORMER_OUTPUTS = {
    "attn_norm": "attn_norm",
    "attn.logits": "attn.relative_bias",  # the module adds the bias to the scaled products
    "ffn_norm": "ffn_norm",
    "ffn.expand": "ffn.expand",
    "ffn.shrink": "ffn.shrink",
}
TRANSFORMER_INPUTS = {"attn_sum": "ffn_norm", "ffn.act": "ffn.shrink"}


def make(
    argument: str,
    *,
    spec: Spec | None = None,
    weights: Params | None = None,
    precision: Precision | None = None,
    options: Mapping[str, str] | None = None,
) -> Target:
    """A model of the package as a target.

    Args:
        argument: name of the model: CoAtNetT, CoAtNet0, ..., CoAtNet7.
        spec: that it is judged against; None: that of the weights, or "kecam/NAME".
        weights: that it is judged with as given; None: it comes without.
        precision: that is declared, as `coatref.conformance.targets.modules` has it. None: float32.
        options: none are known.

    Raises:
        InputError: the package has no such model, the spec is none that it computes, an option is given, or the package was
            imported with another backend.
        MissingDependencyError: the package, torch or something that they need is not installed.
        WeightsError: the parameters of the model that the package builds are not those of the spec.
    """
    if argument not in specs.MODELS:
        raise InputError(f"kecam:{argument!r:.80} names no CoAtNet of {PACKAGE}; it has {', '.join(specs.MODELS)}.")
    options = dict(options or {})
    refuse_options("kecam", options)
    claimed = spec
    if spec is None:
        spec = named_spec(f"kecam/{argument}") if weights is None else weights.spec
    precision = precision or Precision()
    model = build(argument, spec).to(module_type(precision))
    hooks = tuple(hooks_of(spec))
    return Target(
        name=f"kecam:{argument}",
        spec=spec,
        run=lambda params, x: run_module(model, state_of(model, params), x, precision, hooks),
        precision=precision,
        params=weights,
        variant=lambda other: make(argument, spec=other, precision=precision),
        expects={place.ours: place.shape for place in names.places(spec, "torch")},
        command=command(f"kecam:{argument}", spec=claimed, precision=precision, options=options),
        versions=versions(PACKAGE, "torch"),
    )


def state_of(model: Any, params: Params) -> dict[str, np.ndarray]:
    """Parameters as a state dict of a model, in which a classifier with a softmax behind it is numbered."""
    state = views(params, "kecam")
    own = {name.replace("predictions.0.", "predictions."): name for name in model.state_dict()}
    return {own[name]: array for name, array in state.items()}


def hooks_of(spec: Spec) -> Iterator[Hook]:
    """The values of a trace that can be seen in a model of the package.

    Only what is a torch module there can be watched, so an activation, a pool or the sum at the end of a block is what
    comes into the module behind it.
    """
    for value, module in names.STEM.items():
        yield Hook(f"s0.{value}", module)
    yield Hook("s0.act1", "stem_2_conv", "input")
    before = "s0"
    for block in spec.blocks():
        stack, layers = names.block_layers(spec)[block.name]
        convolution = isinstance(block.run, MBConv)
        norm = layers["pre_norm" if convolution else "attn_norm"]
        yield Hook(before, f"{stack}_{norm}", "input")
        outputs, inputs = (MBCONV_OUTPUTS, MBCONV_INPUTS) if convolution else (TRANSFORMER_OUTPUTS, TRANSFORMER_INPUTS)
        if block.projected:
            yield Hook(f"{block.name}.shortcut", f"{stack}_{layers['shortcut']}")
        if not convolution and block.stride == 2:
            yield Hook(f"{block.name}.attn_pool", f"{stack}_{layers['attn.q']}", "input")
        for value, layer in outputs.items():
            yield Hook(f"{block.name}.{value}", f"{stack}_{layers[layer]}")
        for value, layer in inputs.items():
            yield Hook(f"{block.name}.{value}", f"{stack}_{layers[layer]}", "input")
        before = block.name
    yield Hook(before, "avg_pool", "input")
    yield Hook("head.pool", "avg_pool")


def build(name: str, spec: Spec) -> Any:
    """The package's model for a spec, in eval mode; its parameters are as the package draws them.

    Raises:
        InputError, MissingDependencyError, WeightsError: as in `make`.
    """
    depths, widths = sizes(name, spec)
    coatnet = package()
    torch = torch_module()
    options: dict[str, Any] = {
        # four axes: taken as they are, where of three the package takes the shortest for the channels
        "input_shape": (None, spec.channels, *spec.image_size),
        "num_classes": spec.head.classes,
        "classifier_activation": None if spec.head.output == "logits" else "softmax",
        "pretrained": None,
    }
    model_of = specs.MODELS[name]
    with torch.random.fork_rng(devices=[]), quiet():  # the package prints what it does
        if (depths, widths) == (model_of.depths, model_of.widths):
            model = getattr(coatnet, name)(**options)
        else:
            model = coatnet.CoAtNet(
                depths,
                widths,
                stem_width=model_of.stem,
                block_types=["conv" if kind == "C" else "transform" for kind in model_of.kinds],
                strides=[2, 2, 2, 1, 2] if model_of.kinds == specs.FIVE else [2, 2, 2, 2],
                head_dimension=model_of.head_size,
                **options,
            )
    state = {plain: model.state_dict()[given] for plain, given in names.plain(model.state_dict()).items()}
    refuse_misfits(spec.name, names.expected(spec, "torch"), state)
    return model.eval()


def sizes(name: str, spec: Spec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Depths and widths of a spec's runs.

    Raises:
        InputError: the spec is not the package's model of that name, whatever its sizes.
    """
    runs = [run for stage in spec.stages for run in stage]
    depths, widths = tuple(run.depth for run in runs), tuple(run.width for run in runs)
    kinds = {"C": MBConv, "T": Transformer}
    fits = [type(run) for run in runs] == [kinds[kind] for kind in specs.MODELS[name].kinds]
    if fits and isinstance(spec.stem, ConvStem):
        own = named_spec(
            f"kecam/{name}", image_size=spec.image_size, classes=spec.head.classes, depths=depths, widths=widths
        )
        head = replace(own.head, output=spec.head.output)
        if own.replace(channels=spec.channels, preprocessing=spec.preprocessing, head=head) == spec:
            return depths, widths
    raise InputError(
        f"kecam:{name} computes spec 'kecam/{name}' at any image size, depths, widths and classes, and spec {spec.name!r} "
        f"has other conventions; judge it against 'kecam/{name}'."
    )


def package() -> ModuleType:
    """The package's module of CoAtNets, on its torch backend.

    Raises:
        InputError: the package was imported with another backend, or the environment asks for one.
        MissingDependencyError: the package or something that it needs is not installed.
    """
    torch_module()
    imported = PACKAGE in sys.modules
    try:
        with environment(BACKEND, "torch"), quiet():
            backend = importlib.import_module(f"{PACKAGE}.backend")
            if backend.is_torch_backend:
                return importlib.import_module(f"{PACKAGE}.coatnet")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"A kecam target needs {error.name}, which is not installed; run: pip install --no-deps "
            f"keras-cv-attention-models, and pip install torch h5py tqdm pillow."
        ) from None
    how = "has been imported in this process" if imported else f"is asked for by {BACKEND}={os.environ.get(BACKEND)!r}"
    raise InputError(
        f"A kecam target needs {PACKAGE} with its torch backend, and another backend {how}; set {BACKEND}=torch before "
        "Python starts."
    )


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """An environment variable set for a while, where it is not set already."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that is printed meanwhile reaches the standard output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
