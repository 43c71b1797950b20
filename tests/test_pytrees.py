"""Parameters as trees: JAX and torch walk through them, differentiate, map and compile, and the spec comes along."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import torch.utils._pytree as torch_tree
import units
from draw_specs import Drawn, specs
from hypothesis import Phase, given, settings

import coatref
from coatref.specification import Attention, ConvStem, Head, MBConv, Spec, SqueezeExcite, Transformer
from coatref.tree import Branch, map_named

Array = Any
ROOT = Path(__file__).resolve().parent.parent

SPEC = Spec(
    name="small",
    image_size=(9, 6),
    stem=ConvStem(widths=(5,), bias=(True,)),
    stages=(
        (MBConv(depth=1, width=6, stride=1, expansion=2.0, squeeze_excite=SqueezeExcite(ratio=0.5)),),
        (Transformer(depth=1, width=8, attention=Attention(head_size=4)),),
    ),
    head=Head(classes=3),
)
DRAWN = Drawn(SPEC, 3)


@pytest.fixture
def x64() -> Iterator[None]:
    """JAX with 64-bit types, and afterwards as it was."""
    with jax.enable_x64(True):
        yield


def of(xp: str, seed: int = 3, spec: Spec = SPEC) -> coatref.Params:
    return coatref.init(spec, seed, xp=xp, dtype="float64", scheme="distinct")


def images(xp: str, drawn: Drawn = DRAWN, batch: int = 2) -> Array:
    values = drawn.images(batch)
    return jax.numpy.asarray(values) if xp == "jax" else torch.asarray(values) if xp == "torch" else values


def loss(params: coatref.Params, x: Array) -> Array:
    """A scalar in which every logit of every image has its own weight."""
    logits = coatref.forward(params, x)
    weights = np.cos(np.arange(float(np.prod(logits.shape)))).reshape(logits.shape)
    return (logits * (torch.asarray(weights) if isinstance(logits, torch.Tensor) else weights)).sum()


def numbers(tree: coatref.Params) -> dict[str, np.ndarray]:
    """Dotted name -> values as NumPy arrays."""
    return {name: np.asarray(array) for name, array in tree.flatten().items()}


def all_numbers(gradient: tuple[coatref.Params, Array]) -> dict[str, np.ndarray]:
    """The same of a gradient, with that of the images as "x"."""
    return numbers(gradient[0]) | {"x": np.asarray(gradient[1])}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit`, which here need not spend its time on fast code: `tests/test_backends.py` has it as users have it."""
    wrapped: Callable[..., Any] = jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})
    return wrapped


def python(code: str) -> str:
    """What code prints in a fresh interpreter, where coatref is imported from where it is imported here."""
    path = [str(Path(coatref.__file__).parent.parent), str(ROOT / "tests" / "support")]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


# --- the tree ---


def check_tree(flat: list[tuple[str, Array]], again: Any, mapped: Any, params: coatref.Params) -> None:
    """Paths are the dotted names, in the order of the network; what comes back is the same tree with the same spec."""
    assert [(path, id(leaf)) for path, leaf in flat] == [(name, id(leaf)) for name, leaf in params.flatten().items()]
    for tree in (again, mapped):
        assert type(tree) is coatref.Params and tree.spec == params.spec
        assert type(tree["s1"]) is tuple and type(tree["s1"][0]) is Branch
        assert list(tree.flatten()) == list(params.flatten())
    assert all(found is leaf for found, leaf in zip(again.flatten().values(), params.flatten().values(), strict=True))
    for name, leaf in params.flatten().items():
        np.testing.assert_array_equal(np.asarray(mapped.flatten()[name]), 2.0 * np.asarray(leaf))


@pytest.mark.parametrize("xp", ["numpy", "jax"])
def test_jax_tree(xp: str, x64: None) -> None:
    params, tree = of(xp), jax.tree_util
    structure: Any
    flat, structure = tree.tree_flatten_with_path(params)
    named = [(tree.keystr(path, simple=True, separator="."), leaf) for path, leaf in flat]
    again = tree.tree_unflatten(structure, tree.tree_leaves(params))
    check_tree(named, again, tree.tree_map(lambda array: 2.0 * array, params), params)
    assert tree.keystr(flat[0][0]) == "['s0']['conv1']['w']"
    equal: Any = tree.tree_structure(of("numpy", 4, Spec.from_json(SPEC.to_json())))
    assert equal == structure and hash(equal) == hash(structure)
    assert tree.tree_structure(of("numpy", 3, SPEC.replace(name="other"))) != structure


@pytest.mark.parametrize("xp", ["numpy", "torch"])
def test_torch_tree(xp: str) -> None:
    params = of(xp)
    flat, structure = torch_tree.tree_flatten_with_path(params)
    named = [
        (".".join(str(getattr(key, "key", getattr(key, "idx", None))) for key in path), leaf) for path, leaf in flat
    ]
    again = torch_tree.tree_unflatten(torch_tree.tree_leaves(params), structure)
    check_tree(named, again, torch_tree.tree_map(lambda array: 2.0 * array, params), params)
    assert torch_tree.keystr(flat[0][0]) == "['s0']['conv1']['w']"
    assert torch_tree.tree_structure(of("torch", 4, Spec.from_json(SPEC.to_json()))) == structure
    assert torch_tree.tree_structure(of("torch", 3, SPEC.replace(name="other"))) != structure


def test_a_tree_of_anything_may_pass_through() -> None:
    """JAX builds trees of placeholders, None among them; unflattening must not look at the leaves."""
    structure: Any = jax.tree_util.tree_structure(of("numpy"))
    marked = jax.tree_util.tree_unflatten(structure, range(structure.num_leaves))
    assert jax.tree_util.tree_leaves(marked) == list(range(structure.num_leaves)) and marked.spec == SPEC
    axes = jax.tree_util.tree_map(lambda leaf: None, of("numpy"))
    assert type(axes) is coatref.Params


@pytest.mark.parametrize("xp", ["numpy", "torch", "jax"])
def test_pickle_and_copy(xp: str, x64: None) -> None:
    params = of(xp)
    for again in (pickle.loads(pickle.dumps(params)), copy.deepcopy(params), copy.copy(params)):
        assert type(again) is coatref.Params and again.spec == SPEC and type(again["s1"][0]) is Branch
        for name, array in numbers(params).items():
            np.testing.assert_array_equal(np.asarray(again.flatten()[name]), array)
    branch = pickle.loads(pickle.dumps(params["head"]))
    assert type(branch) is Branch and list(branch) == list(params["head"])


# --- imported in any order ---

MAKE = """
import numpy as np, coatref
from coatref.specification import *
params = coatref.init(Spec.from_json({spec!r}), 3, dtype="float64", scheme="distinct")
x = np.random.default_rng(0).normal(size=(2, 9, 6, 3))
"""


@pytest.mark.parametrize("first", ["import coatref", "import jax"])
def test_params_made_before_or_after_jax(first: str) -> None:
    code = MAKE.format(spec=SPEC.to_json()) + (
        "import jax; jax.config.update('jax_enable_x64', True)\n"
        "doubled = jax.tree_util.tree_map(lambda a: 2 * a, params)\n"
        "assert type(doubled) is coatref.Params and doubled.spec == params.spec\n"
        "shapes = jax.eval_shape(coatref.forward, params, x)\n"
        "print(shapes.shape, shapes.dtype)"
    )
    assert python(f"{first}\n{code}") == "(2, 3) float64"


def test_params_made_before_torch() -> None:
    """After it they are made in this process, above and below."""
    code = MAKE.format(spec=SPEC.to_json()) + (
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
        "moved = torch.utils._pytree.tree_map(lambda a: torch.asarray(a.copy()), params)\n"
        "assert type(moved) is coatref.Params and moved.spec == params.spec\n"
        "gradient = torch.func.grad(lambda p: coatref.forward(p, torch.asarray(x)).sum())(moved)\n"
        "print(type(gradient).__name__)"
    )
    assert python(code) == "Params"


# --- compiled ---


def test_jit_compiles_once_for_equal_specs(x64: None) -> None:
    traced: list[Spec] = []

    def forward(params: coatref.Params, x: Array) -> Array:
        traced.append(params.spec)
        return coatref.forward(params, x)

    jitted = jax.jit(forward)
    x = images("jax")
    first = jitted(of("jax"), x)
    second = jitted(of("jax", 4, Spec.from_json(SPEC.to_json())), x)
    jitted(of("numpy", 5), x)
    jitted(jax.tree_util.tree_map(np.negative, of("numpy")), x)
    assert len(traced) == 1
    assert not np.array_equal(np.asarray(first), np.asarray(second))
    jax.eval_shape(jitted, of("jax", 3, SPEC.replace(name="other")), x)
    assert len(traced) == 2
    np.testing.assert_allclose(first, coatref.forward(of("numpy"), images("numpy")), rtol=1e-12)


# --- mapped ---


def stacked(params: list[coatref.Params], stack: Callable[[list[Array]], Array]) -> coatref.Params:
    """Several networks as one tree with a new first axis."""
    return coatref.Params(map_named(lambda name, _: stack([each.flatten()[name] for each in params]), params[0]), SPEC)


def check_maps(by_image: Array, by_network: Array) -> None:
    """vmap over images is the batch; vmap over networks is one after the other, to within the moves that `units` allows."""
    x = images("numpy", batch=3)
    expected = coatref.forward(of("numpy"), x, backend="definition")
    allowed = units.NETWORK_UNITS * units.sensitivity(of("numpy"), x, "float64")
    assert np.max(np.abs(np.asarray(by_image) - expected)) <= allowed
    for seed, found in zip((3, 4), np.asarray(by_network), strict=True):
        expected = coatref.forward(of("numpy", seed), x, backend="definition")
        allowed = units.NETWORK_UNITS * units.sensitivity(of("numpy", seed), x, "float64")
        assert np.max(np.abs(found - expected)) <= allowed


def test_torch_vmap() -> None:
    x, params = images("torch", batch=3), of("torch")
    by_image = torch.func.vmap(lambda image: coatref.forward(params, image[None, ...])[0, ...])(x)
    networks = stacked([of("torch", 3), of("torch", 4)], torch.stack)
    check_maps(by_image, torch.func.vmap(coatref.forward, in_dims=(0, None))(networks, x))


def test_jax_vmap(x64: None) -> None:
    x, params = images("jax", batch=3), of("jax")
    by_image = compiled(jax.vmap(lambda p, image: coatref.forward(p, image[None, ...])[0, ...], in_axes=(None, 0)))(
        params, x
    )
    networks = stacked([of("jax", 3), of("jax", 4)], jax.numpy.stack)
    check_maps(by_image, compiled(jax.vmap(coatref.forward, in_axes=(0, None)))(networks, x))


# --- differentiated ---


@functools.cache
def jax_gradient(drawn: Drawn) -> tuple[coatref.Params, Array]:
    """Of the loss, with respect to the parameters and to the images."""
    gradient: tuple[coatref.Params, Array] = compiled(jax.grad(loss, argnums=(0, 1)))(
        of("jax", drawn.seed, drawn.spec), images("jax", drawn)
    )
    return gradient


def torch_gradient(params: coatref.Params, drawn: Drawn) -> tuple[coatref.Params, Array]:
    gradient: tuple[coatref.Params, Array] = torch.func.grad(loss, argnums=(0, 1))(params, images("torch", drawn))
    return gradient


def slope(drawn: Drawn, direction: dict[str, np.ndarray]) -> tuple[float, float]:
    """The derivative of the loss along a direction, by NumPy and differences, and how far off it may be.

    Central differences of fourth order with step h are off by about h^4 times the fifth derivative and by u/h times the
    loss; the second is 2e-11 here. Halving h changes the first by 15/16, so the change, and ten times the second, bound
    what is left.
    """
    params, x = of("numpy", drawn.seed, drawn.spec), images("numpy", drawn)

    def at(t: float) -> float:
        moved = params.replace({name: array + t * direction[name] for name, array in params.flatten().items()})
        return float(loss(moved, x))

    def difference(h: float) -> float:
        return (8.0 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12.0 * h)

    fine, coarse = difference(5e-5), difference(1e-4)
    return fine, abs(fine - coarse) + 10.0 * units.ROUNDOFF["float64"] / 5e-5 * (1.0 + abs(at(0.0)))


def test_gradient_against_differences(x64: None) -> None:
    """Along random directions through all parameters at once, and along single entries of every tensor."""
    gradient = numbers(jax_gradient(DRAWN)[0])
    random = np.random.default_rng(0)
    directions = [{name: random.normal(size=array.shape) for name, array in gradient.items()} for _ in range(3)]
    for name, array in gradient.items():
        entry = {other: np.zeros(each.shape) for other, each in gradient.items()}
        entry[name].flat[random.integers(array.size)] = 1.0
        directions.append(entry)
    for direction in directions:
        expected, allowed = slope(DRAWN, direction)
        found = sum(float(np.sum(gradient[name] * values)) for name, values in direction.items())
        changed = [name for name, values in direction.items() if values.any()]
        assert abs(found - expected) <= allowed, f"{changed[0]}: {found} where differences give {expected}"
        assert allowed <= 1e-6 * (1.0 + abs(expected)), f"differences tell nothing about {changed[0]}"


def check_gradients_agree(drawn: Drawn) -> None:
    """JAX's and torch's gradients differ by no more than torch's moves when every parameter is off by a unit."""
    params = of("torch", drawn.seed, drawn.spec)
    one, other = all_numbers(torch_gradient(params, drawn)), all_numbers(jax_gradient(drawn))
    assert list(one) == list(other)
    u = units.ROUNDOFF["float64"]
    largest = max(float(np.max(np.abs(array))) for array in one.values())
    moves = dict.fromkeys(one, u * largest)
    for trial in range(4):
        shaken = units.shaken_params(of("numpy", drawn.seed, drawn.spec), "float64", np.random.default_rng(trial))
        moved = all_numbers(torch_gradient(shaken.to(xp="torch"), drawn))
        moves = {name: max(most, float(np.max(np.abs(moved[name] - one[name])))) for name, most in moves.items()}
    for name, array in one.items():
        off = float(np.max(np.abs(array - other[name])))
        assert off <= units.NETWORK_UNITS * moves[name], f"{name}: {off / moves[name]:.3g} moves"


def test_gradients_of_jax_and_torch_agree(x64: None) -> None:
    check_gradients_agree(DRAWN)


@pytest.mark.deep
@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))  # seconds each
@given(specs())
def test_more_gradients_of_jax_and_torch_agree(drawn: Drawn) -> None:
    with jax.enable_x64(True):
        check_gradients_agree(drawn)


def test_torch_autograd_agrees_with_torch_func() -> None:
    """Leaves that require a gradient, as in a training loop, and torch.func.grad of the tree give the same."""
    leaves = torch_tree.tree_map(lambda array: array.clone().requires_grad_(), of("torch"))
    loss(leaves, images("torch")).backward()
    functional, _ = torch_gradient(of("torch"), DRAWN)
    assert type(functional) is coatref.Params and functional.spec == SPEC
    for name, array in functional.flatten().items():
        torch.testing.assert_close(leaves.flatten()[name].grad, array, rtol=1e-12, atol=1e-14)
        if name.endswith("attn.k.b"):  # the same for all keys, so the softmax takes it out
            assert float(torch.max(torch.abs(array))) < 1e-14
        else:
            assert float(torch.max(torch.abs(array))) > 1e-6, f"{name} has no influence"
