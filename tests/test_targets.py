"""The adapters: each runs as its documentation says, computes what the definition does, and refuses what it cannot."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from timm_import import require_timm

import coatref
from coatref.conformance.precision import Precision, as_stored, numpy_type
from coatref.conformance.target import Target
from coatref.conformance.targets import resolve as resolve_module
from coatref.conformance.targets.resolve import resolve
from coatref.registry import library_of
from coatref.specification.parts import ConvStem

PAPER = coatref.spec("coatnet_0", image_size=(64, 96), classes=7, depths=(2, 1, 1, 2, 1), widths=(8, 16, 24, 32, 64))
TINY = PAPER.replace(stages=(PAPER.stages[0], PAPER.stages[3]))  # for JAX, which compiles every operation
SMALL: dict[str, Any] = {"image_size": (64, 96), "classes": 7, "depths": (1, 2, 2, 1), "widths": (16, 32, 64, 96)}
TIMM = (  # every way in which timm's models differ
    "test_coatnet",
    "coatnet_0_rw_224",  # early squeeze-excite, pools
    "coatnet_1_rw_224",  # early squeeze-excite, strides in the depthwise convolution
    "coatnet_bn_0_rw_224",
    "coatnet_rmlp_1_rw_224",  # MLP, max pools
    "coatnet_rmlp_2_rw_384",  # layer scale
    "coatnet_nano_cc_224",  # mixed stages
    "coatnext_nano_rw_224",
    "coatnet_0_224",  # head with a hidden layer
)


def small(name: str) -> coatref.Spec:
    """A small spec of a timm model's conventions."""
    changes = {"depths": (1, 1, 2, 2)} if name == "coatnet_nano_cc_224" else {}
    changes |= {"widths": (64, 128, 256, 512)} if "next" in name else {}
    spec = coatref.spec(f"timm/{name}", **(SMALL | changes))
    if "next" in name or not isinstance(spec.stem, ConvStem):
        return spec
    return spec.replace(stem=dataclasses.replace(spec.stem, widths=(8, 12)))


def drawn(spec: coatref.Spec, dtype: str = "float64", batch: int = 2) -> tuple[coatref.Params, np.ndarray]:
    """Parameters and images as a target is handed them."""
    params = coatref.init(spec, 1, dtype="float64", scheme="distinct")
    x = np.random.default_rng(2).normal(size=(batch, *spec.image_size, spec.channels))
    stored = params.replace({name: as_stored(array, dtype) for name, array in params.flatten().items()})
    return stored, as_stored(x, dtype)


def host(value: Any) -> np.ndarray:
    """An array of any library on the host."""
    return np.asarray(library_of(value).to_numpy(value))


def assert_computes(target: Target, bound: float = 1e-12) -> dict[str, Any]:
    """Every output is the definition's, to `bound` of its largest value, for the target's own spec; gives them."""
    params, x = drawn(target.spec, target.precision.storage)
    wide = params.to(dtype="float64")
    expected = coatref.trace(wide, x.astype(np.float64))
    found = {name: host(value) for name, value in target.run(params, x).items()}
    assert set(found) <= set(expected)
    for name, value in found.items():
        assert value.shape == expected[name].shape, name
        error = np.max(np.abs(value - expected[name])) / np.max(np.abs(expected[name]))
        assert error <= bound, f"{name}: {error:.1e}"
    return found


def module_file(folder: Path, name: str, text: str) -> str:
    """A module of that name in a folder."""
    (folder / f"{name}.py").write_text(text)
    return name


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def needs(package: str) -> Any:
    """A package, or the test is skipped."""
    return pytest.importorskip(package, reason=f"needs {package}, which is not installed")


# resolve


@pytest.mark.parametrize("text", ["", "timm", "timm:", "coatnet_0", "nonsense:x", "Timm:coatnet_0_224"])
def test_texts_that_are_no_target(text: str) -> None:
    with pytest.raises(coatref.InputError, match="kind:argument, with one of the kinds backend, timm, "):
        resolve(text)


def test_a_similar_kind_is_named() -> None:
    with pytest.raises(coatref.InputError, match=r"did you mean torch:"):
        resolve("toch:a:b")


def test_kinds_point_at_this_folder() -> None:
    assert set(resolve_module.KINDS) >= {"backend", "timm", "kecam", "torch", "python", "jax", "onnx", "cmd", "results"}


def test_weights_give_the_spec() -> None:
    params, _ = drawn(PAPER)
    target = resolve("backend:numpy", weights=params, precision="float64")
    assert target.params is params and target.spec == PAPER
    with pytest.raises(coatref.InputError, match="'coatnet_1' with weights of 'coatnet_0'"):
        resolve("backend:numpy", weights=params, spec="coatnet_1")


def test_options_that_a_kind_does_not_have() -> None:
    for text in ("backend:numpy", "timm:test_coatnet"):
        with pytest.raises(coatref.InputError, match="option dialect; it takes none"):
            resolve(text, dialect="timm")


# backend:


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "jax-jit", "array_api_strict"])
def test_backends_in_float64(name: str) -> None:
    needs(name.partition("-")[0])
    target = resolve(f"backend:{name}", precision="float64")
    assert target.spec == coatref.spec("coatnet_0")
    assert target.variant is not None
    spec = TINY if "jax" in name else PAPER
    found = assert_computes(target.variant(spec))
    assert list(found) == ["logits"] and found["logits"].dtype == np.float64
    if "jax" in name:
        import jax

        assert not jax.config.jax_enable_x64  # type: ignore[attr-defined]
    else:
        assert_computes(target.variant(spec).variant(spec.replace(image_size=(96, 64))))  # type: ignore[misc]


@pytest.mark.parametrize("name", ["numpy", "torch", "jax-jit", "array_api_strict"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_backends_in_narrower_types(name: str, dtype: str) -> None:
    needs(library := name.partition("-")[0])
    if dtype not in resolve_dtypes(library):
        with pytest.raises(coatref.InputError, match=f"'{dtype}' was asked of {name}"):
            resolve(f"backend:{name}", precision=dtype)
        return
    target = resolve(f"backend:{name}", spec=TINY if "jax" in name else PAPER, precision=dtype)
    assert target.precision == Precision(dtype, dtype)  # operation by operation
    found = assert_computes(target, {"float32": 1e-5, "float16": 0.05, "bfloat16": 0.3}[dtype])
    assert found["logits"].dtype == numpy_type(dtype)


def resolve_dtypes(name: str) -> tuple[str, ...]:
    """The types that a library computes in."""
    from coatref.registry import library

    return library(name).dtypes


def test_what_is_declared_stays_declared() -> None:
    policy = Precision("float16", "float32")
    target = resolve("backend:numpy", spec=PAPER, precision=policy)
    assert target.precision == policy
    assert target.command == "backend:numpy --spec coatnet_0 --dtype float16 --accumulate float32"
    assert resolve("backend:numpy", precision="float16").command == "backend:numpy --dtype float16"
    assert resolve("backend:numpy").command == "backend:numpy --dtype float32"
    assert resolve("backend:numpy").versions["numpy"] == np.__version__


@pytest.mark.deep
def test_torch_compile() -> None:
    needs("torch")
    target = resolve("backend:torch-compile", spec=TINY)
    assert assert_computes(target, 1e-5)["logits"].dtype == np.float32
    assert target.variant is not None
    assert_computes(target.variant(TINY.replace(image_size=(96, 64))), 1e-5)


def test_backends_that_do_not_exist() -> None:
    with pytest.raises(coatref.InputError, match=r"'backend:tensorflow'.*numpy, torch.*jax-jit, torch-compile"):
        resolve("backend:tensorflow")


# timm:


@pytest.mark.parametrize("name", TIMM)
def test_every_watched_value_of_timm_is_the_definitions(name: str) -> None:
    require_timm()
    target = resolve(f"timm:{name}", precision="float64", spec=small(name))
    found = assert_computes(target, 1e-10)
    params, x = drawn(target.spec)
    everything = set(coatref.trace(params, x))
    inside: tuple[str, ...] = (
        "norm1",
        "expand_norm",
        "depthwise_norm",
        "bias",
        "attn.logits",
        "weights",
    )  # of fused modules
    if target.spec.stages[0][0].kind == "mbconv" and target.spec.stages[0][0].pre_norm_activation is not None:
        inside = (*inside, "pre_norm")
    assert everything - set(found) == {value for value in everything if value.endswith(inside)}


def test_timm_variants() -> None:
    require_timm()
    target = resolve("timm:coatnet_0_rw_224")
    assert target.spec == coatref.spec("timm/coatnet_0_rw_224") and target.variant is not None
    spec = small("coatnet_0_rw_224")
    for asked in (
        spec,
        spec.replace(
            image_size=(96, 64),
            channels=1,
            preprocessing=dataclasses.replace(spec.preprocessing, mean=(0.5,), std=(0.5,)),
        ),
        spec.replace(stages=spec.stages[:3]),
        spec.replace(stages=(spec.stages[0], spec.stages[1], spec.stages[3])),
    ):
        variant = target.variant(asked)
        assert variant.spec == asked and variant.command.startswith(
            "timm:coatnet_0_rw_224 --spec timm/coatnet_0_rw_224"
        )
        assert_computes(variant, 1e-4)


def test_a_timm_head_of_another_hidden_width() -> None:
    require_timm()
    spec = small("coatnet_0_224")
    spec = spec.replace(head=dataclasses.replace(spec.head, hidden=dataclasses.replace(spec.head.hidden, width=20)))  # type: ignore[type-var]
    assert_computes(resolve("timm:coatnet_0_224", spec=spec, precision="float64"))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda spec: coatref.spec("coatnet_0"), "its stem, the mbconv blocks of s1"),
        (lambda spec: coatref.spec("timm/coatnet_1_rw_224"), "the mbconv blocks of s1, the mbconv blocks of s2$"),
        (lambda spec: spec.replace(head=dataclasses.replace(spec.head, bias=False)), "its head"),
        (lambda spec: spec.replace(stem=dataclasses.replace(spec.stem, padding="same")), "its stem"),
        (
            lambda spec: spec.replace(stages=((dataclasses.replace(spec.stages[0][0], stride=1),), *spec.stages[1:])),
            "strides or widths of s1",
        ),
    ],
)
def test_specs_of_other_conventions_are_refused(change: Callable[[Any], coatref.Spec], where: str) -> None:
    require_timm()
    asked = change(small("coatnet_0_rw_224"))
    with pytest.raises(
        coatref.InputError,
        match=f"cannot be had for spec.*differs from 'timm/coatnet_0_rw_224' in {where.rstrip('$')}{';' if where.endswith('$') else ''}",
    ):
        resolve("timm:coatnet_0_rw_224", spec=asked)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("accumulate", ["declared", "same"])
def test_timm_in_narrower_types(dtype: str, accumulate: str) -> None:
    require_timm()
    precision: Any = Precision(dtype, dtype) if accumulate == "same" else dtype
    target = resolve("timm:coatnet_0_rw_224", spec=small("coatnet_0_rw_224"), precision=precision)
    assert target.precision.accumulate == (dtype if accumulate == "same" else "float32")
    params, x = drawn(target.spec, dtype)
    exact = coatref.forward(params.to(dtype="float64"), x.astype(np.float64))
    logits = target.run(params, x)["logits"]
    assert logits.dtype == numpy_type(dtype)
    assert np.array_equal(as_stored(logits, dtype), logits)  # numbers of the type
    error = np.max(np.abs(logits - exact)) / np.max(np.abs(exact))
    assert 0 < error < {"float32": 1e-5, "float16": 0.02, "bfloat16": 0.1}[dtype]


def test_a_timm_target_keeps_nothing_of_what_it_was_handed() -> None:
    torch = needs("torch")
    require_timm()
    state = torch.random.get_rng_state()
    target = resolve("timm:test_coatnet", spec=small("test_coatnet"), precision="float64")
    assert torch.equal(state, torch.random.get_rng_state())
    params, x = drawn(target.spec)
    first = target.run(params, x)
    kept = {name: value.copy() for name, value in first.items()}
    other = coatref.init(target.spec, 9, dtype="float64", scheme="distinct")
    assert not np.array_equal(target.run(other, x)["logits"], first["logits"])
    again = target.run(params, x)
    assert all(
        np.array_equal(again[name], value) and np.array_equal(first[name], value) for name, value in kept.items()
    )


def test_timm_models_that_do_not_exist() -> None:
    with pytest.raises(coatref.InputError, match=r"no spec 'timm/coatnet_0_rw'; similar names: timm/coatnet_0_rw_224"):
        resolve("timm:coatnet_0_rw")


def test_a_size_that_timm_takes_otherwise() -> None:
    """Sides that halve to odd ones: timm makes its tables for a larger grid than its pools give."""
    require_timm()
    spec = coatref.spec("timm/coatnet_0_rw_224", **(SMALL | {"image_size": (80, 96)}))
    with pytest.raises(coatref.InputError, match="other tensors"):
        resolve("timm:coatnet_0_rw_224", spec=spec)


# torch:

OWN_MODULE = '''
import torch
from torch import nn


def by_timm(spec):
    from timm_import import timm

    runs = [stage[0] for stage in spec.stages]
    return timm().create_model(
        "test_coatnet",
        img_size=spec.image_size,
        num_classes=spec.head.classes,
        embed_dim=tuple(run.width for run in runs),
        depths=tuple(run.depth for run in runs),
        stem_width=spec.stem.widths,
    )


def by_size(img_size):
    from timm_import import timm

    return timm().create_model("test_coatnet", img_size=img_size)


def fixed():
    return by_size((64, 96))


def renamed(params):
    from coatref.weights.export import export

    return {f"inner.{name}": array for name, array in export(params, "timm").items()}


class Wrapped(nn.Module):
    """Channels last, under other names, and with an index among its buffers."""

    def __init__(self, spec):
        super().__init__()
        self.inner = by_timm(spec)
        self.register_buffer("index", torch.arange(3))

    def forward(self, x):
        return {"logits": self.inner(x.permute(0, 3, 1, 2))}


def no_module():
    return 3


def failing():
    raise RuntimeError("out of luck")
'''


@pytest.fixture
def own(here: Path) -> str:
    """The module above, importable from the current directory."""
    needs("torch")
    require_timm()
    return module_file(here, "own_torch_module", OWN_MODULE)


def test_a_torch_factory_that_takes_a_spec(own: str, here: Path) -> None:
    spec = small("test_coatnet")
    names = {
        "stem": "s0",
        "stages.0.blocks.0": "s1.0",
        "stages.2.blocks.1.norm2:input": "s3.1.attn_sum",
        "norm": "head.norm",
    }
    (here / "names.json").write_text(json.dumps(names))
    path = list(sys.path)
    target = resolve(f"torch:{own}:by_timm", spec=spec, precision="float64", names="names.json")
    assert sys.path == path
    assert set(assert_computes(target)) == {*names.values(), "logits"}
    assert target.command == f"torch:{own}:by_timm --spec timm/test_coatnet --dtype float64 --names names.json"
    assert target.variant is not None
    wider = coatref.spec("timm/test_coatnet", **(SMALL | {"widths": (24, 64, 96, 128)}))
    assert set(assert_computes(target.variant(wider))) == {*names.values(), "logits"}
    deeper = coatref.spec("timm/test_coatnet", **(SMALL | {"depths": (2, 2, 1, 1)}))
    assert set(assert_computes(target.variant(deeper))) == {"logits"}  # the names speak of other blocks there


def test_a_torch_factory_that_takes_a_size(own: str) -> None:
    target = resolve(
        f"torch:{own}:by_size",
        spec=coatref.spec("timm/test_coatnet", image_size=(64, 96)),
        dialect="timm",
        precision="float64",
    )
    assert_computes(target)
    assert target.variant is not None
    assert_computes(target.variant(target.spec.replace(image_size=(96, 64))))
    with pytest.raises(coatref.InputError, match="other image sizes only"):
        target.variant(small("test_coatnet"))


def test_a_torch_factory_without_arguments_and_a_module(own: str) -> None:
    from coatref.conformance.targets.torch import torch_target

    torch = needs("torch")
    spec = coatref.spec("timm/test_coatnet", image_size=(64, 96))
    target = resolve(f"torch:{own}:fixed", spec=spec, precision="float64")
    assert target.variant is None
    assert_computes(target)
    module = require_timm().create_model("test_coatnet", img_size=(64, 96))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert_computes(torch_target(module, spec, precision=Precision("float64", "float64")))
    assert module.training and all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_torch_module_with_a_mapping_and_channels_last(own: str) -> None:
    spec = small("test_coatnet")
    target = resolve(f"torch:{own}:Wrapped", spec=spec, mapping=f"{own}:renamed", layout="NHWC", precision="float64")
    assert_computes(target)
    assert target.variant is not None
    assert_computes(target.variant(spec.replace(image_size=(96, 64))))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_torch_module_in_narrower_types(own: str, dtype: str) -> None:
    target = resolve(f"torch:{own}:by_timm", spec=small("test_coatnet"), precision=dtype)
    params, x = drawn(target.spec, dtype)
    logits = target.run(params, x)["logits"]
    assert logits.dtype == numpy_type(dtype) and np.array_equal(as_stored(logits, dtype), logits)
    exact = coatref.forward(params.to(dtype="float64"), x.astype(np.float64))
    assert (
        np.max(np.abs(logits - exact)) / np.max(np.abs(exact))
        < {"float32": 1e-5, "float16": 0.02, "bfloat16": 0.1}[dtype]
    )


def test_values_of_attention_are_not_taken_for_images(own: str) -> None:
    torch = needs("torch")
    from coatref.conformance.targets.modules import host as from_torch

    value = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert from_torch("s1.0", value, "NCHW").shape == (1, 3, 4, 2)
    assert from_torch("s3.0.attn.q", value, "NCHW").shape == (1, 2, 3, 4)
    assert from_torch("s1.0", value, "NHWC").shape == (1, 2, 3, 4)


def test_watched_values_are_copies() -> None:
    """An activation that works in place comes after the value was taken, and must not change it."""
    torch = needs("torch")
    from coatref.conformance.targets.modules import Hook, run_module

    for layout in ("NCHW", "NHWC"):
        model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU(inplace=True)).eval()
        x = np.random.default_rng(3).normal(size=(2, 3, 4, 5)).astype(np.float32)
        found = run_module(model, {}, x, Precision(), [Hook("s0", "0")], layout)
        assert np.array_equal(found["s0"], x) and np.array_equal(found["logits"], np.maximum(x, 0))


def test_torch_targets_that_cannot_be_had(own: str, here: Path) -> None:
    spec = small("test_coatnet")
    (here / "bad.json").write_text("{")
    (here / "odd.json").write_text('["stem"]')
    (here / "absent.json").write_text('{"stem.nowhere": "s0"}')
    (here / "ending.json").write_text('{"stem:between": "s0"}')
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        (f"{own}:by_timm", {"dialect": "keras"}, "dialect 'keras'; there are coatref, timm"),
        (f"{own}:by_timm", {"layout": "CHWN"}, "one of NCHW, NHWC, got 'CHWN'"),
        (f"{own}:by_timm", {"dialect": "timm", "mapping": f"{own}:renamed"}, "given both"),
        (f"{own}:by_timm", {"mapping": f"{own}:renam"}, "has no 'renam'; similar names: renamed"),
        (f"{own}:by_timm", {"names": "nowhere.json"}, "'nowhere.json', which cannot be read"),
        (f"{own}:by_timm", {"names": "bad.json"}, "'bad.json', which cannot be read as JSON"),
        (f"{own}:by_timm", {"names": "odd.json"}, "texts to texts"),
        (f"{own}:by_timm", {"names": "absent.json"}, "'stem.nowhere' of MaxxVit"),
        (f"{own}:by_timm", {"names": "ending.json"}, "only ':input'"),
        (f"{own}:by_timm", {"size": "3"}, "option size; it takes dialect, mapping, names, layout"),
        (f"{own}:no_module", {}, "must give a torch.nn.Module, and gave a int"),
        (f"{own}:failing", {}, "failed for spec 'timm/test_coatnet' with RuntimeError: out of luck"),
        (f"{own}:fixd", {}, "has no 'fixd'; similar names: fixed"),
        ("no_such_module:f", {}, "there is no module 'no_such_module'"),
        ("no_such_module", {}, "written package.module:name, got 'no_such_module'"),
    )
    for argument, options, message in cases:
        with pytest.raises(coatref.InputError, match=message):
            resolve(f"torch:{argument}", spec=spec, **options)
    with pytest.raises(coatref.InputError, match="does not say which network it computes"):
        resolve(f"torch:{own}:by_timm")


def test_weights_that_a_module_does_not_take(own: str) -> None:
    target = resolve(f"torch:{own}:fixed", spec=small("test_coatnet"))
    with pytest.raises(coatref.WeightsError, match=r"with another shape: .*stem.conv1.weight \(takes"):
        target.run(*drawn(target.spec, "float32"))
    target = resolve(f"torch:{own}:fixed", spec=small("test_coatnet"), dialect="coatref")
    with pytest.raises(coatref.WeightsError, match=r"it has and was not given stem.conv1.weight.* s0.conv1.w"):
        target.run(*drawn(target.spec, "float32"))


# python:

OWN_FUNCTIONS = """
import coatref

SPEC = "coatnet_0"


def logits(params, x):
    return coatref.forward(params, x, backend="definition")


def everything(params, x):
    return coatref.trace(params, x)


number = 3
"""


def test_a_python_function(here: Path) -> None:
    name = module_file(here, "own_functions", OWN_FUNCTIONS)
    path = list(sys.path)
    target = resolve(f"python:{name}:logits", precision="float64")
    assert sys.path == path
    assert target.spec == coatref.spec("coatnet_0") and target.variant is None
    target = resolve(f"python:{name}:logits", spec=PAPER, precision="float64")
    assert list(assert_computes(target, 0.0)) == ["logits"]
    assert target.command == f"python:{name}:logits --spec coatnet_0 --dtype float64"
    assert "s3.0.attn.logits" in assert_computes(
        resolve(f"python:{name}:everything", spec=PAPER, precision="float64"), 0.0
    )


def test_a_python_function_for_any_spec(here: Path) -> None:
    name = module_file(here, "own_any", OWN_FUNCTIONS + "ANY_SPEC = True\n")
    target = resolve(f"python:{name}:logits", precision="float64")
    assert target.variant is not None
    assert_computes(target.variant(PAPER), 0.0)
    assert resolve(f"python:{name}:logits", any_spec="no").variant is None
    again = target.variant(PAPER).variant
    assert again is not None and again(PAPER).spec == PAPER


def test_python_functions_that_cannot_be_had(here: Path) -> None:
    name = module_file(here, "own_other", OWN_FUNCTIONS.replace('SPEC = "coatnet_0"', ""))
    module_file(here, "own_broken", "import nothing_like_this\n")
    module_file(here, "own_wrong", "1 / 0\n")
    for argument, message in (
        (f"{name}:logits", "does not say which network.*--spec NAME.*set SPEC"),
        (f"{name}:number", "must be a function, and is a int"),
        (f"{name}:logit", "has no 'logit'; similar names: logits"),
        (f"{name}.inner:logits", f"no module '{name}.inner'"),
        ("own_broken:f", "failed with ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("own_wrong:f", "failed with ZeroDivisionError"),
        ("own_absent:f", "no module 'own_absent'; it was looked for in"),
    ):
        with pytest.raises(coatref.InputError, match=message):
            resolve(f"python:{argument}")
    with pytest.raises(coatref.InputError, match="any_spec is yes or no, got 'maybe'"):
        resolve(f"python:{name}:logits", any_spec="maybe")


# jax:

OWN_JAX = """
import jax.numpy as jnp
import coatref

ANY_SPEC = True


def apply(params, x):
    assert params["s0"]["conv1"]["w"].dtype == x.dtype
    return coatref.forward(params, x, backend="definition")


def watched(params, x):
    return {"logits": apply(params, x), "s0": coatref.trace(params, x)["s0"]}


def not_traceable(params, x):
    assert float(jnp.sum(x)) != 0.0
    return coatref.forward(params, x)
"""


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_jax_function(here: Path, dtype: str) -> None:
    jax = needs("jax")
    name = module_file(here, "own_jax", OWN_JAX)
    target = resolve(f"jax:{name}:watched", spec=TINY, precision=dtype)
    found = assert_computes(target, {"float64": 1e-12, "float32": 1e-5, "bfloat16": 0.3}[dtype])
    assert set(found) == {"logits", "s0"} and found["logits"].dtype == numpy_type(dtype)
    assert not jax.config.jax_enable_x64
    assert target.command == f"jax:{name}:watched --spec coatnet_0 --dtype {dtype}"


def test_a_jax_function_compiled_or_not(here: Path) -> None:
    jax = needs("jax")
    name = module_file(here, "own_eager", OWN_JAX)
    target = resolve(f"jax:{name}:not_traceable", spec=TINY, precision="float64", jit="no")
    assert_computes(target)
    assert target.variant is not None
    assert_computes(target.variant(TINY.replace(image_size=(96, 64))))
    with pytest.raises(jax.errors.ConcretizationTypeError):
        resolve(f"jax:{name}:not_traceable", spec=TINY).run(*drawn(TINY, "float32"))
    with pytest.raises(coatref.InputError, match="jit is yes or no, got 'off'"):
        resolve(f"jax:{name}:apply", spec=TINY, jit="off")
    with pytest.raises(coatref.InputError, match="does not say which network"):
        resolve(f"jax:{name}:apply")


# what is not installed


@pytest.mark.parametrize(
    ("text", "package"), [("torch:os:path", "torch"), ("jax:os:getcwd", "jax"), ("timm:test_coatnet", "torch")]
)
def test_missing_packages_are_named(text: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(coatref.MissingDependencyError, match=rf"needs {package}.*pip install 'coatref\[{package}\]'"):
        resolve(text, spec=TINY if not text.startswith("timm") else None)
