"""torch's fast forms: every step of a prepared network and whole networks, what looks on (autograd, autocast, torch.compile,
torch.func), what must stay as it is, and faults.

`test_backends.py` judges torch's primitives. Here are the steps that only prepared parameters use; each is compared with
the same step made of the definition in float64 on NumPy, to within the bounds of `units`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import torch
import torch._dynamo.testing
import units
from draw_specs import Drawn, specs
from hypothesis import given, settings
from hypothesis import strategies as st
from signed import signed

import coatref
from coatref.backends import describe, network, torch_fused, torch_ops
from coatref.backends.fused import Fused, from_primitives
from coatref.errors import CoatrefError
from coatref.ops.activation import ACTIVATIONS
from coatref.primitives import DEFINITION
from coatref.specification import Attention, ConvStem, Head, MBConv, Spec, SqueezeExcite, Transformer
from coatref.specification.parts import Padding
from coatref.tree import flatten, map_named

Array = Any
STEPS = torch_fused.STEPS
EXACT = from_primitives(DEFINITION)
TYPES = ("float32", "float64")
SLOPE = 1.2  # no activation is steeper anywhere; see `units.squeeze_excite`

DEVICES = [
    "cpu",
    pytest.param(
        "cuda:0", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA build and device")
    ),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread_and_exact_products() -> Iterator[None]:
    """On arrays as small as these threads wait for each other more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["oneDNN", "public"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With oneDNN's products, and as where torch has none of these."""
    if request.param == "public":
        monkeypatch.setattr(torch_fused, "HAS_ONEDNN", False)


# --- one step ---


class Call(NamedTuple):
    """A call of a step: float64 arrays by name, a layer's kernel among them as in `coatref.ops`; options; what is allowed."""

    arrays: dict[str, Any]
    options: dict[str, Any]
    allowed: float
    scale: Array


@st.composite
def calls(draw: st.DrawFn, name: str, dtype: str) -> Call:
    """Draw a call of the step of that name, of numbers that `dtype` holds, and derive what its error may be."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, height, width, c, d, kernel = draw(st.permutations((2, 3, 4, 5, 6, 7)))
    n = draw(st.sampled_from((n, 1)))
    size = draw(st.sampled_from((1.0, 1e-3, 10.0)))

    def one(*options: Any) -> Any:
        return options[draw(st.integers(0, len(options) - 1))]

    def normal(*shape: int) -> np.ndarray:
        return (size * random.normal(0.0, 1.0, shape)).astype(dtype).astype(np.float64)

    def layer(*shape: int) -> dict[str, Any]:
        return {"w": normal(*shape), "b": normal(shape[-1]) if one(True, False) else None}

    def then(bound: units.Bound, act: str | None) -> units.Bound:
        """A bound after an activation: the error before it times the slope, and its own."""
        allowed, scale = bound
        return (allowed, scale) if act is None else (SLOPE * allowed + units.ACTIVATION_UNITS[act][0], scale)

    grid, act = normal(n, height, width, c), one(None, *ACTIVATIONS)
    window = {"stride": one(1, 2), "padding": one(*get_args(Padding), "valid")}
    kh, kw = min(kernel, height), min(kernel - 1, width)
    match name:
        case "conv2d":
            arrays = {"x": grid, **layer(kh, kw, c, d)}
            return Call(arrays, window | {"act": act}, *then(units.conv2d(**arrays, **window), act))
        case "depthwise":
            arrays = {"x": grid, **layer(kh, kw, c)}
            return Call(arrays, window | {"act": act}, *then(units.depthwise_conv2d(**arrays, **window), act))
        case "dense":
            arrays = {"x": one(grid, grid[:, 0, 0]), **layer(c, d)}
            allowed, scale = then(units.dense(**arrays), act)
            arrays["residual"] = normal(*arrays["x"].shape[:-1], d) if one(True, False) else None
            more = 0.0 if arrays["residual"] is None else np.abs(arrays["residual"])
            return Call(arrays, {"act": act}, allowed + 1, scale * SLOPE + more)  # no activation is above 1.2 |x|
        case "affine":
            arrays = {"x": grid, "scale": normal(c), "shift": normal(c)}
            size_of = np.abs(grid) * np.abs(arrays["scale"]) + np.abs(arrays["shift"])
            return Call(arrays, {"act": act}, *then((2, size_of), act))
        case "layer_norm":
            affine = one(True, False)
            x = (grid + one(0.0, 64.0)).astype(dtype).astype(np.float64)
            arrays = {"x": x, "gamma": normal(c) if affine else None, "beta": normal(c) if affine else None}
            gamma, beta = (arrays["gamma"], arrays["beta"]) if affine else (np.ones(c), np.zeros(c))
            epsilon = one(1e-5, 1e-3, 1e-6)
            return Call(arrays, {"epsilon": epsilon}, *units.layer_norm(x, gamma, beta, epsilon=epsilon))
        case "squeeze_excite":
            gate_act, affine = one(*ACTIVATIONS), one(True, False)
            reduce = {key: each for key, each in layer(c, d).items() if each is not None}
            expand = {key: each for key, each in layer(d, c).items() if each is not None}
            allowed, scale = units.squeeze_excite(grid, reduce, expand, activation=gate_act)
            arrays = {"x": grid, "reduce": reduce, "expand": expand, "scale": None, "shift": None}
            if affine:  # the gate times the scale 1, times x as before, the sum 1
                arrays |= {"scale": normal(c), "shift": normal(c)}
                allowed, scale = allowed + 2, scale * np.abs(arrays["scale"]) + np.abs(arrays["shift"])
            act = act if affine else None
            return Call(arrays, {"gate_act": gate_act, "act": act}, *then((allowed, scale), act))
        case "attention":
            heads, add = one(1, 2, 3), one("pre_softmax", "post_softmax")
            qkv, length = normal(n, height, width, 3 * heads * c), height * width
            bias = {"each": normal(heads, length, length), "all": normal(1, length, length), "none": None}[
                one("each", "all", "none")
            ]
            q, k, v = (apart(part, heads) for part in np.split(qkv, 3, axis=-1))
            allowed, scale = units.relative_attention(q, k, v, bias, scale=1.0, scale_site="query", add=add)
            return Call({"qkv": qkv, "bias": bias}, {"heads": heads, "add": add}, allowed, together(scale, qkv, heads))
        case "linear_attention":
            heads = one(1, 2, 3)
            qkv = normal(n, height, width, 3 * heads * c)
            q, k, v = (apart(part, heads) for part in np.split(qkv, 3, axis=-1))
            allowed, scale = units.linear_attention(q, k, v)
            return Call({"qkv": qkv}, {"heads": heads}, allowed, together(scale, qkv, heads))
        case "add":
            other = normal(*grid.shape)
            return Call({"x": grid, "y": other}, {}, 1, np.abs(grid) + np.abs(other))
    raise AssertionError(f"no call is drawn for {name}")


def apart(x: Array, heads: int) -> Array:
    """(N, H, W, heads*D) -> (N, heads, H*W, D)."""
    n, height, width, channels = x.shape
    return x.reshape(n, height * width, heads, channels // heads).transpose(0, 2, 1, 3)


def together(x: Array, qkv: Array, heads: int) -> Array:
    """(N, heads, H*W, D) -> (N, H, W, heads*D)."""
    n, height, width, channels = qkv.shape
    return x.transpose(0, 2, 1, 3).reshape(n, height, width, channels // 3)


OWN = ("conv2d", "dense", "depthwise", "affine", "layer_norm", "squeeze_excite", "attention", "linear_attention", "add")


def laid(layer: dict[str, Any]) -> dict[str, Any]:
    """A layer as `lay_out` lays it out, b with it."""
    return {**layer, **torch_fused.lay_out({"w": layer["w"]})}


def off(call: Call, name: str, step: Callable[..., Array], dtype: str, device: str, channels_first: bool) -> float:
    """The error of a step in units."""

    def tensor(value: Any) -> Any:
        if isinstance(value, dict):
            return laid({key: tensor(each) for key, each in value.items()})
        return None if value is None else torch.tensor(value, dtype=getattr(torch, dtype), device=device)

    given = {key: tensor(each) for key, each in call.arrays.items()}
    if "w" in given:
        given = laid(given)
    first = next(iter(given))
    if channels_first and given[first].ndim == 4:
        given[first] = given[first].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    found = step(**given, **call.options)
    assert found.dtype == getattr(torch, dtype) and str(found.device) == device
    reference = getattr(EXACT, name)(**call.arrays, **call.options)
    return units.units(found.cpu().numpy(), reference, call.scale, dtype)


def check_step(name: str, dtype: str, step: Callable[..., Array], examples: int, device: str = "cpu") -> None:
    """Search for a call on which a step is off by more than is allowed."""

    @settings(max_examples=examples, deadline=None, database=None, derandomize=examples > 50)
    @given(calls(name, dtype), st.booleans())
    def check(call: Call, channels_first: bool) -> None:
        allowed = call.allowed * (2 if dtype == "float64" else 1)
        error = off(call, name, step, dtype, device, channels_first)
        assert error <= allowed, f"{name} is off by {error:.3g} units, where {allowed:g} are allowed"

    check()


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", OWN)
def test_step(name: str, dtype: str, device: str) -> None:
    check_step(name, dtype, getattr(STEPS, name), 40, device)


def test_every_step_is_tested() -> None:
    others = {field.name for field in dataclasses.fields(Fused) if getattr(STEPS, field.name) is not None} - set(OWN)
    primitives = {"activation", "max_pool", "avg_pool", "global_avg_pool", "softmax"}  # in `test_backends.py`
    assert others - {"lay_out"} == primitives
    assert all(getattr(STEPS, name) is torch_ops.PRIMITIVES[name] for name in primitives)


# --- whole networks ---

SMALL = Spec(
    name="small",
    image_size=(9, 6),
    stem=ConvStem(widths=(5,), bias=(True,)),
    stages=(
        (MBConv(depth=1, width=6, stride=1, expansion=2.0, squeeze_excite=SqueezeExcite(ratio=0.5)),),
        (Transformer(depth=1, width=8, attention=Attention(head_size=4)),),
    ),
    head=Head(classes=3),
)
SIZES: dict[str, Any] = {"image_size": (64, 96), "classes": 7}
NETWORKS = (
    coatref.spec("timm/coatnet_0_rw_224", depths=(1, 1, 2, 1), widths=(32, 64, 96, 160), **SIZES),
    coatref.spec("coatnet_0", depths=(2, 1, 2, 2, 1), widths=(24, 32, 64, 96, 160), **SIZES),
    coatref.spec("timm/coatnext_nano_rw_224", depths=(1, 1, 1, 1), widths=(64, 64, 128, 256), **SIZES),
)


def params_of(drawn: Drawn, dtype: str, device: str = "cpu") -> coatref.Params:
    params = coatref.init(drawn.spec, drawn.seed, xp="torch", dtype=dtype, device=device, scheme="distinct")
    return signed(params)


def images_of(drawn: Drawn, dtype: str, batch: int, device: str = "cpu") -> torch.Tensor:
    return torch.tensor(drawn.images(batch, dtype), dtype=getattr(torch, dtype), device=device)


def moves(drawn: Drawn, dtype: str, batch: int, device: str = "cpu", first: bool = False, fused: Any = None) -> float:
    """How far prepared parameters on torch lead from the definition in float64 on NumPy, in moves; see `units`."""
    params, x = params_of(drawn, dtype, device), images_of(drawn, dtype, batch, device)
    exact, wide = params.to(xp="numpy", dtype="float64"), drawn.images(batch, dtype)
    reference = coatref.forward(exact, wide, backend="definition")
    if first:
        x = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    with torch.no_grad():
        prepared = coatref.prepare(params)
        found = coatref.forward(prepared, x) if fused is None else network.forward(prepared, x, fused=fused)
    assert found.dtype == x.dtype and str(found.device) == device and tuple(found.shape) == reference.shape
    distance = float(np.max(np.abs(found.cpu().numpy() - reference)))
    return distance / units.sensitivity(exact, wide, dtype)


def check_networks(dtype: str, examples: int, device: str = "cpu") -> None:
    """Search for a network that is too far off."""

    @settings(max_examples=examples, deadline=None, database=None)
    @given(specs(), st.sampled_from((1, 3)), st.booleans())
    def check(drawn: Drawn, batch: int, first: bool) -> None:
        found = moves(drawn, dtype, batch, device, first)
        assert found <= units.NETWORK_UNITS, f"is off by {found:.3g} moves of the output"

    check()


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TYPES)
def test_prepared_networks(dtype: str, device: str) -> None:
    check_networks(dtype, 15, device)


@pytest.mark.deep
@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TYPES)
def test_many_prepared_networks(dtype: str, device: str) -> None:
    check_networks(dtype, 1000, device)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: spec.name)
def test_ordinary_networks(spec: Spec, dtype: str, device: str) -> None:
    for batch in (1, 3):
        assert moves(Drawn(spec, 5), dtype, batch, device, first=batch == 3) <= units.NETWORK_UNITS


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(dtype: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored in 11 or 8 bits, prepared parameters stay within as many moves of one unit of that type."""
    monkeypatch.setitem(units.ROUNDOFF, dtype, {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype])
    drawn = Drawn(NETWORKS[0], 5)
    params = params_of(drawn, dtype, device)
    x = images_of(drawn, "float32", 2, device).to(getattr(torch, dtype))
    found = coatref.forward(coatref.prepare(params), x)
    assert found.dtype == getattr(torch, dtype)
    exact, wide = params.to(dtype="float64"), x.double()
    host, given = exact.to(xp="numpy"), wide.cpu().numpy()
    distance = np.max(np.abs(found.double().cpu().numpy() - coatref.forward(host, given, backend="definition")))
    assert distance <= units.NETWORK_UNITS * units.sensitivity(host, given, dtype)


# --- what must stay as it is ---


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("spec", (*NETWORKS, SMALL), ids=lambda spec: spec.name)
def test_images_and_parameters_are_not_written_into(spec: Spec, dtype: str) -> None:
    drawn = Drawn(spec, 3)
    x = images_of(drawn, dtype, 2)
    for tree in (params_of(drawn, dtype), coatref.prepare(params_of(drawn, dtype))):
        before = [array.clone() for array in (x, *(each for _, each in flatten(tree)))]
        first = coatref.forward(tree, x)
        with torch.inference_mode():
            second = coatref.forward(tree, x)
        assert torch.equal(first, second)
        after = [x, *(each for _, each in flatten(tree))]
        assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_prepared_arrays_are_plain_tensors_laid_out_once() -> None:
    prepared = coatref.prepare(params_of(Drawn(NETWORKS[0], 3), "float32"))
    for _, array in flatten(prepared):
        assert type(array) is torch.Tensor and array.layout == torch.strided and not array.requires_grad
    assert prepared["s0"]["conv1"]["w"].shape == (32, 3, 3, 3)
    assert prepared["s0"]["conv1"]["w"].is_contiguous(memory_format=torch.channels_last)
    block = prepared["s1"][0]
    assert block["depthwise"]["w"].shape == (block["expand"]["w"].shape[0], 1, 3, 3)
    assert block["expand"]["w"].shape == (256, 64) and block["expand"]["w"].is_contiguous()


# --- who looks on ---


def loss(tree: Any, x: Array) -> Array:
    """A scalar in which every logit has its own weight."""
    logits = coatref.forward(tree, x)
    return (logits * torch.cos(torch.arange(logits.numel(), dtype=logits.dtype)).reshape(logits.shape)).sum()


def of_definition(params: coatref.Params, x: Array) -> Array:
    """The gradient of the same loss by the definition, with respect to the images."""
    x = x.clone().requires_grad_()
    logits = coatref.forward(params, x, backend="definition")
    (logits * torch.cos(torch.arange(logits.numel(), dtype=logits.dtype)).reshape(logits.shape)).sum().backward()
    return x.grad


@pytest.mark.parametrize("spec", (*NETWORKS, SMALL), ids=lambda spec: spec.name)
def test_gradients_of_images(spec: Spec) -> None:
    """Through prepared and unprepared parameters, with autograd and torch.func, they are the definition's."""
    drawn = Drawn(spec, 4)
    params = params_of(drawn, "float64")
    x = images_of(drawn, "float64", 2)
    expected = of_definition(params, x)
    for tree in (params, coatref.prepare(params)):
        leaf = x.clone().requires_grad_()
        loss(tree, leaf).backward()
        mapped = torch.func.grad(loss, argnums=1)(tree, x)
        for found in (leaf.grad, mapped):
            assert float((found - expected).abs().max()) <= 1e-9 * float(expected.abs().max())


@pytest.mark.parametrize("dtype", TYPES)
def test_gradients_of_prepared_parameters(dtype: str) -> None:
    """Along the gradient the loss grows by its length: a difference tells whether any step left autograd."""
    drawn = Drawn(SMALL, 4)
    prepared = coatref.prepare(params_of(drawn, dtype))
    x = images_of(drawn, dtype, 2)
    gradient = torch.func.grad(loss)(prepared, x)
    leaves = coatref.Prepared(map_named(lambda _, array: array.clone().requires_grad_(), prepared), SMALL)
    loss(leaves, x).backward()
    length = 0.0
    for (name, leaf), (_, mapped) in zip(flatten(leaves), flatten(gradient), strict=True):
        assert leaf.grad is not None, name
        torch.testing.assert_close(leaf.grad, mapped)
        length += float((mapped * mapped).sum())
    step = {"float32": 1e-3, "float64": 1e-5}[dtype] / length**0.5

    def at(sign: float) -> float:
        moved = [
            (array + sign * step * slope)
            for (_, array), (_, slope) in zip(flatten(prepared), flatten(gradient), strict=True)
        ]
        remaining = iter(moved)
        return float(loss(coatref.Prepared(map_named(lambda *_: next(remaining), prepared), SMALL), x))

    assert (at(1.0) - at(-1.0)) / (2.0 * step) == pytest.approx(length, rel={"float32": 1e-2, "float64": 1e-6}[dtype])


@pytest.mark.parametrize("dtype", TYPES)
def test_maps_of_prepared_parameters(dtype: str) -> None:
    """torch.func.vmap over single images is the batch."""
    drawn = Drawn(NETWORKS[1], 4)
    prepared, x = coatref.prepare(params_of(drawn, dtype)), images_of(drawn, dtype, 3)
    mapped = torch.func.vmap(lambda image: coatref.forward(prepared, image[None])[0])(x)
    exact = params_of(drawn, dtype).to(xp="numpy", dtype="float64")
    allowed = units.NETWORK_UNITS * units.sensitivity(exact, drawn.images(3, dtype), dtype)
    assert float((mapped - coatref.forward(prepared, x)).abs().max()) <= 2 * allowed


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own, in jvp
@pytest.mark.parametrize("dtype", TYPES)
def test_tangents_of_prepared_parameters(dtype: str) -> None:
    """Forward-mode differentiation sees every step: its tangent is the gradient's share of the direction."""
    drawn = Drawn(SMALL, 4)
    prepared, x = coatref.prepare(params_of(drawn, dtype)), images_of(drawn, dtype, 2)
    direction = torch.flip(x, dims=(1,)).contiguous()
    gradient = torch.func.grad(loss, argnums=1)(prepared, x)
    tangent = torch.func.jvp(functools.partial(loss, prepared), (x,), (direction,))[1]
    torch.testing.assert_close(tangent, (gradient * direction).sum())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: spec.name)
def test_autocast(spec: Spec, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast products are in bfloat16: as many moves of one of its units as any computation in it."""
    monkeypatch.setitem(units.ROUNDOFF, "bfloat16", 2.0**-8)
    drawn = Drawn(spec, 5)
    params, x = params_of(drawn, "float32", device), images_of(drawn, "float32", 2, device)
    exact, wide = params.to(xp="numpy", dtype="float64"), drawn.images(2, "float32")
    reference = coatref.forward(exact, wide, backend="definition")
    allowed = units.NETWORK_UNITS * units.sensitivity(exact, wide, "bfloat16")
    for tree in (params, coatref.prepare(params)):
        with torch.autocast(device.partition(":")[0], torch.bfloat16):
            found = coatref.forward(tree, x)
        assert found.dtype == torch.bfloat16
        plain = coatref.forward(tree, x)
        assert not torch.equal(found.float(), plain)
        assert np.max(np.abs(found.double().cpu().numpy() - reference)) <= allowed


# --- compiled ---


def compiled_agrees(spec: Spec, backend: str, prepared: bool, dtype: str, device: str = "cpu") -> None:
    """In one graph, compiled once for inputs of equal shapes, and within the moves that are allowed between libraries."""
    drawn = Drawn(spec, 3)
    params = params_of(drawn, dtype, device)
    tree: Any = coatref.prepare(params) if prepared else params
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    function = torch.compile(lambda tree, x: coatref.forward(tree, x), fullgraph=True, backend=counter)
    exact, wide = params.to(xp="numpy", dtype="float64"), drawn.images(2, dtype)
    allowed = units.NETWORK_UNITS * units.sensitivity(exact, wide, dtype)
    x = images_of(drawn, dtype, 2, device)
    batches = x, x.flip(0)  # made outside inference mode: torch tells tensors made within from others
    with torch.inference_mode():
        for batch in batches:
            found = function(tree, batch)
            reference = coatref.forward(exact, batch.double().cpu().numpy(), backend="definition")
            assert np.max(np.abs(found.double().cpu().numpy() - reference)) <= allowed
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("prepared", [True, False])
def test_torch_compile_sees_one_graph(prepared: bool) -> None:
    compiled_agrees(SMALL, "eager", prepared, "float32")


@pytest.mark.parametrize(
    "transform",
    [
        lambda tree, x: torch.func.vmap(lambda image: coatref.forward(tree, image[None])[0])(x),
        lambda tree, x: torch.func.grad(lambda x: coatref.forward(tree, x).sum())(x),
    ],
    ids=["vmap", "grad"],
)
def test_torch_compile_sees_one_graph_of_a_transform(transform: Callable[..., Array]) -> None:
    drawn = Drawn(SMALL, 3)
    tree, x = coatref.prepare(params_of(drawn, "float32")), images_of(drawn, "float32", 2)
    torch._dynamo.reset()
    function: Any = torch.compile(transform, fullgraph=True, backend="eager")
    torch.testing.assert_close(function(tree, x), transform(tree, x))
    torch._dynamo.reset()


@pytest.mark.deep
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("spec", (SMALL, *NETWORKS), ids=lambda spec: spec.name)
def test_compiled_networks(spec: Spec, prepared: bool, dtype: str, backend: str, device: str) -> None:
    compiled_agrees(spec, backend, prepared, dtype, device)


# --- what is refused, and what is told ---

X, Q = torch.ones((2, 4, 6, 3)), torch.ones((2, 1, 3, 4))


@pytest.mark.parametrize(
    ("name", "arrays", "options"),
    [
        ("conv2d", (X, torch.ones((3, 3, 2, 5))), {}),
        ("conv2d", (X, torch.ones((5, 5, 3, 5))), {"padding": "valid"}),
        ("conv2d", (X[0], torch.ones((3, 3, 3, 5))), {}),
        ("conv2d", (X, torch.ones((3, 3, 3, 5))), {"padding": "sideways"}),
        ("depthwise_conv2d", (X, torch.ones((3, 3, 2))), {}),
        ("depthwise_conv2d", (X, torch.ones((5, 5, 3))), {"padding": "valid"}),
        ("depthwise_conv2d", (X, torch.ones((3, 3, 3))), {"padding": "sideways"}),
        ("max_pool", (X,), {"size": 5, "padding": "valid"}),
        ("max_pool", (X[0],), {}),
        ("max_pool", (X,), {"padding": "sideways"}),
        ("avg_pool", (X,), {"size": 5, "padding": "valid"}),
        ("avg_pool", (X,), {"padded_zeros": "sideways"}),
        ("activation", (X, "sideways"), {}),
        ("dense", (X, torch.ones((2, 5))), {}),
        ("relative_attention", (Q, Q, Q), {"scale_site": "sideways"}),
        ("relative_attention", (Q, Q, Q, torch.ones((1, 3, 3))), {"add": "sideways"}),
        ("relative_attention", (Q, Q, Q, torch.ones((2, 3, 3))), {}),
        ("relative_attention", (Q, Q, Q[..., :2]), {}),
        ("relative_attention", (Q, Q, Q), {"key_mask": torch.ones(4, dtype=torch.bool)}),
    ],
)
def test_primitives_refuse_what_the_definition_refuses(name: str, arrays: Any, options: dict[str, Any]) -> None:
    with pytest.raises(CoatrefError) as wanted:
        getattr(DEFINITION, name)(*arrays, **options)
    with pytest.raises(CoatrefError) as found:
        torch_ops.PRIMITIVES[name](*arrays, **options)
    assert type(found.value) is type(wanted.value) and str(found.value) == str(wanted.value)


def test_a_traced_attention_is_the_definition() -> None:
    seen: dict[str, Array] = {}

    def tap(name: str, value: Array) -> Array:
        seen[name] = value
        return value

    torch_ops.relative_attention(Q, Q, Q, scale=0.5, tap=tap)
    assert list(seen) == ["logits", "weights"]


def test_without_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    told = describe()["torch"]
    assert told["steps"]["dense"] == "coatref.backends.torch_fused.dense"
    assert told["primitives"]["conv2d"] == "coatref.backends.torch_ops.conv2d"
    assert set(told["without"]) >= {"gather_bias", "linear_attention"}
    monkeypatch.setattr(torch_fused, "HAS_ONEDNN", False)
    assert any("oneDNN" in reason for reason in describe()["torch"]["without"].values())


# --- faults ---


def instead(**changes: Any) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """With other options than those given."""
    return lambda step: lambda **options: step(**(options | changes))


def in_float32(step: Callable[..., Array]) -> Callable[..., Array]:
    return lambda **options: step(**options).float().double()


def with_tanh(step: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *, act, **options: step(**options, act="gelu_tanh" if act == "gelu" else act)


def with_transposed_bias(step: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *, bias, **options: step(bias=None if bias is None else bias.transpose(1, 2), **options)


def with_heads_first(step: Callable[..., Array]) -> Callable[..., Array]:
    def wrong(*, qkv: Array, heads: int, **options: Any) -> Array:
        mixed = qkv.unflatten(-1, (heads, 3, -1)).transpose(-3, -2).flatten(-3)
        return step(qkv=mixed, heads=heads, **options)

    return wrong


def with_padding_swapped(step: Callable[..., Array]) -> Callable[..., Array]:
    """SAME with the odd row in front."""

    def wrong(*, x: Array, w: Array, **options: Any) -> Array:
        return step(x=x.flip(1), w=w.flip(2), **options).flip(1)

    return wrong


FAULTS: list[tuple[str, Callable[..., Any]]] = [
    *((name, in_float32) for name in OWN),
    *((name, with_tanh) for name in ("conv2d", "dense", "depthwise", "affine", "squeeze_excite")),
    *((name, instead(b=None)) for name in ("conv2d", "dense", "depthwise")),
    *((name, with_padding_swapped) for name in ("conv2d", "depthwise")),
    ("dense", instead(residual=None)),
    ("layer_norm", instead(epsilon=1.0001e-5)),
    ("squeeze_excite", instead(scale=None, shift=None)),
    ("attention", with_transposed_bias),
    ("attention", with_heads_first),
    ("attention", instead(add="pre_softmax")),
    ("linear_attention", with_heads_first),
]


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_a_wrong_step_is_found_out(name: str, fault: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError, match=r"is off by .* units, where"):
        check_step(name, "float64", fault(getattr(STEPS, name)), 100)


def by_position(fault: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """A fault of a step whose first arguments come by position, as the network gives them."""

    def of(step: Callable[..., Array]) -> Callable[..., Array]:
        return lambda *values, **options: fault(step)(**dict(zip(names, values, strict=False)), **options)

    return of


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("dense", by_position(in_float32, ("x", "w", "b"))),
        ("depthwise", by_position(instead(b=None), ("x", "w", "b"))),
        ("layer_norm", by_position(instead(epsilon=1.1e-5), ("x", "gamma", "beta"))),
        ("attention", by_position(with_transposed_bias, ("qkv", "bias"))),
    ],
)
def test_a_network_with_a_wrong_step_is_found_out(name: str, fault: Callable[..., Any]) -> None:
    wrong = dataclasses.replace(STEPS, **{name: fault(getattr(STEPS, name))})
    assert moves(Drawn(NETWORKS[1], 5), "float64", 2, fused=wrong) > units.NETWORK_UNITS


def test_writing_into_an_argument_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that took the images for its own would change them."""
    monkeypatch.setattr(torch_fused, "STEPS", dataclasses.replace(STEPS, conv2d=overwriting))
    with pytest.raises(AssertionError):
        test_images_and_parameters_are_not_written_into(NETWORKS[0], "float32")


def overwriting(x: Array, *rest: Any, **options: Any) -> Array:
    return STEPS.conv2d(x.mul_(0.5), *rest, **options)
