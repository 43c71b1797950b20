"""Array libraries: found by name, by module and by array; third parties' as well; and the seam for fast forms."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import array_api_compat.numpy
import array_api_compat.torch
import array_api_strict as strict
import jax
import jax.numpy
import numpy as np
import pytest
import torch

import coatref
from coatref.errors import DtypeError, InputError, LibraryError, MissingDependencyError
from coatref.primitives import DEFINITION, Form, Primitives, primitives_for
from coatref.registry import library, library_of, resolve_dtype, resolve_library
from coatref.specification import Attention, ConvStem, Head, MBConv, Norm, Pool, Spec, Transformer

Array = Any
ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("numpy", "torch", "jax", "array_api_strict")
DTYPES = ("float32", "float64")

SPEC = Spec(
    name="everything",  # every primitive has a place in it
    image_size=(9, 6),
    stem=ConvStem(widths=(4,), bias=(True,)),
    stages=(
        (MBConv(depth=1, width=5, stride=1), MBConv(depth=1, width=6, shortcut_pool=Pool(kind="avg"))),
        (
            Transformer(depth=1, width=8, stride=1, attention=Attention(head_size=4)),
            Transformer(
                depth=1, width=8, attention=Attention(form="linear", head_size=4, scale="1", relative_bias=None)
            ),
        ),
    ),
    head=Head(classes=3, norm=Norm(kind="layer", epsilon=1e-5), output="probabilities"),
)
SMALL = SPEC.replace(stages=(SPEC.stages[1][:1],))


def of(xp: Any, dtype: str = "float32", spec: Spec = SMALL, **options: Any) -> coatref.Params:
    return coatref.init(spec, 3, xp=xp, dtype=dtype, scheme="distinct", **options)


def images(dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 9, 6, 3)).astype(dtype)


def bits(params: coatref.Params) -> dict[str, bytes]:
    """Dotted name -> the bytes of the values, in C order."""
    return {name: np.asarray(library_of(array).to_numpy(array)).tobytes() for name, array in params.flatten().items()}


def python(code: str, *folders: Path) -> str:
    """What code prints in a fresh interpreter with these folders first on its path, and the coatref that is loaded here."""
    path = [*map(str, folders), str(Path(coatref.__file__).parent.parent)]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


# --- names and modules ---


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("numpy", "numpy"),
        (np, "numpy"),
        (array_api_compat.numpy, "numpy"),
        ("torch", "torch"),
        (torch, "torch"),
        (array_api_compat.torch, "torch"),
        ("jax", "jax"),
        (jax, "jax"),
        (jax.numpy, "jax"),
        ("array_api_strict", "array_api_strict"),
        (strict, "array_api_strict"),
    ],
)
def test_resolve_library(given: str | ModuleType, name: str) -> None:
    found = resolve_library(given)
    assert found.name == name and found is library(name)
    assert library_of(found.namespace().asarray([0.0])) is found
    assert resolve_library(found.namespace()) is found


@pytest.mark.parametrize("given", ["tensorflow", "", "Numpy", "numpy.linalg", sys, 3, None])
def test_unknown_libraries_are_refused(given: Any) -> None:
    with pytest.raises(InputError, match=r"registered; known are .*numpy.*torch"):
        resolve_library(given)


def test_a_library_that_is_not_installed_is_named_with_its_command() -> None:
    if importlib.util.find_spec("cupy") is not None:
        pytest.skip("CuPy is installed")
    with pytest.raises(MissingDependencyError, match=r"'cupy'.*pip install 'coatref\[cupy\]'"):
        coatref.init(SPEC, xp="cupy")


class Subclass(np.ndarray):
    """An array of a class of its own, of no library of its own."""


def test_library_of_arrays() -> None:
    assert library_of(np.zeros(2)).name == "numpy"
    assert library_of(np.float32(1.0)).name == "numpy"
    assert library_of(np.zeros(2).view(Subclass)).name == "numpy"
    assert library_of(torch.nn.Parameter(torch.zeros(2))).name == "torch"
    assert library_of(strict.asarray([1.0])).name == "array_api_strict"
    traced: list[str] = []

    def note(x: Array) -> Array:
        traced.append(library_of(x).name)
        return x

    for transformed in (note, jax.vmap(note), lambda x: jax.grad(note)(x[0])):
        jax.eval_shape(transformed, np.zeros(2))
    assert traced == ["jax"] * 3


@pytest.mark.parametrize("thing", [1.0, [1.0, 2.0], None, "x", (1,), object()])
def test_library_of_what_is_no_array(thing: Any) -> None:
    with pytest.raises(LibraryError, match=r"Python array API was expected, got builtins\.\w+; pass a NumPy"):
        library_of(thing)
    with pytest.raises(LibraryError):
        coatref.forward(of("numpy"), thing)


# --- data types ---


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_resolve_dtype(name: str, dtype: str) -> None:
    found = library(name)
    with jax.enable_x64(True):
        wanted = getattr(found.namespace(), dtype)
        assert resolve_dtype(found, dtype) == wanted
        assert resolve_dtype(found, wanted) == wanted
        assert resolve_dtype(found, found.namespace().zeros(1, dtype=wanted).dtype) == wanted
        assert next(iter(of(name, wanted).flatten().values())).dtype == wanted


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("dtype", ["int32", "complex64", "float128", "float", "", "abs", "__doc__", int, None])
def test_resolve_dtype_refuses(name: str, dtype: Any) -> None:
    with pytest.raises(InputError, match=r"cannot give it: it computes in .*float32, float64"):
        resolve_dtype(library(name), dtype)


def test_half_precision_where_the_library_has_it() -> None:
    for name in ("numpy", "torch", "jax"):
        assert next(iter(of(name, "float16").flatten().values())).dtype == library(name).namespace().float16
    for name, dtype in (("array_api_strict", "float16"), ("numpy", "bfloat16")):
        with pytest.raises(InputError, match=dtype):
            of(name, dtype)


def test_float64_of_jax_without_64_bit_types_is_refused() -> None:
    with jax.enable_x64(False):
        with pytest.raises(InputError, match=r"jax_enable_x64"):
            of("jax", "float64")
        with pytest.raises(InputError, match=r"jax_enable_x64"):
            of("numpy", "float64").to(xp="jax")
        assert next(iter(of("numpy", "float64").to(xp="jax", dtype="float32").flatten().values())).dtype == "float32"


# --- the same parameters everywhere ---


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("dtype", [*DTYPES, "float16"])
@pytest.mark.parametrize("scheme", ["training", "distinct"])
def test_init_gives_the_same_bits(name: str, dtype: str, scheme: Any) -> None:
    if dtype not in library(name).dtypes:
        pytest.skip(f"{name} has no {dtype}")
    with jax.enable_x64(True):
        found = coatref.init(SPEC, 7, xp=name, dtype=dtype, scheme=scheme)
        assert all(library_of(array).name == name for array in found.flatten().values())
        assert bits(found) == bits(coatref.init(SPEC, 7, dtype=dtype, scheme=scheme))


def test_init_differs_by_seed_and_tensor() -> None:
    one, other = (coatref.init(SPEC, seed, scheme="distinct").flatten() for seed in (7, 8))
    assert not any(np.array_equal(array, other[name]) for name, array in one.items())
    values = np.concatenate([array.ravel() for array in one.values()])
    assert len(np.unique(values)) > 0.999 * len(values)  # no stream is used twice


def test_init_in_bfloat16_is_the_same_on_torch_and_jax() -> None:
    assert bits(of("torch", "bfloat16")) == {
        name: np.asarray(array, np.float32).tobytes() for name, array in of("jax", "bfloat16").flatten().items()
    }


@pytest.mark.parametrize("source", LIBRARIES)
@pytest.mark.parametrize("target", LIBRARIES)
def test_to_another_library_and_dtype(source: str, target: str) -> None:
    with jax.enable_x64(True):
        for dtype in DTYPES if (source, target) != ("jax", "jax") else ("float64",):  # JAX compiles for every shape
            params = of(source, dtype)
            before = bits(params)
            kept, single = params.to(xp=target), params.to(xp=target, dtype="float32")
            double = params.to(xp=resolve_library(target).namespace(), dtype="float64")
            assert bits(kept) == before
            assert bits(single) == bits(of("numpy", "float32"))  # rounded once, wherever that is done
            if dtype == "float64":
                assert bits(double) == before
            for moved, kind in ((kept, dtype), (single, "float32"), (double, "float64")):
                assert moved.spec == SMALL and type(moved) is coatref.Params
                for array in moved.flatten().values():
                    assert library_of(array).name == target
                    assert array.dtype == getattr(library(target).namespace(), kind)
            assert bits(params) == before


@pytest.mark.parametrize("source", ["numpy", "torch", "array_api_strict"])
@pytest.mark.parametrize("target", LIBRARIES)
def test_to_never_shares_memory(source: str, target: str) -> None:
    """What is written into the source afterwards is not seen in the copy (JAX's arrays cannot be written to)."""
    with jax.enable_x64(True):
        params = of("numpy", "float64").to(xp=source)
        if source == "numpy":  # what coatref makes itself is read-only there
            params = params.replace({name: array.copy() for name, array in params.flatten().items()})
        copied = [params.to(xp=target), params.to(xp=target, dtype="float64"), params.to(xp=target, dtype="float32")]
        before = [bits(each) for each in copied]
        for array in params.flatten().values():
            array[...] = 0.0
        assert not any(any(values) for values in bits(params).values())
        assert [bits(each) for each in copied] == before


def test_to_another_device() -> None:
    here, there = strict.Device("CPU_DEVICE"), strict.Device("device1")
    params = of("array_api_strict", device=here)
    for moved in (params.to(device=there), of("numpy").to(xp=strict, device=there), of(strict, device=there)):
        assert all(array.device == there for array in moved.flatten().values())
        assert bits(moved) == bits(params)
        assert bits(moved.to(xp="numpy")) == bits(params)
    with pytest.raises(LibraryError, match=r"on device .*device1.*params\.to\(device="):
        coatref.forward(params, strict.asarray(images(), device=there))


def test_mixed_libraries_and_dtypes_are_refused() -> None:
    with pytest.raises(LibraryError, match=r"x is a torch array and parameter s0\.conv1\.w a numpy array.*xp='torch'"):
        coatref.forward(of("numpy"), torch.asarray(images()))
    with pytest.raises(DtypeError, match=r"float64 and parameter s0\.conv1\.w is float32"):
        coatref.forward(of("numpy"), images("float64"))
    mixed = of("numpy").replace({"head.classifier.b": of("numpy", "float64")["head"]["classifier"]["b"]})
    with pytest.raises(DtypeError, match=r"head\.classifier\.b is float64"):
        coatref.forward(mixed, images())


# --- the seam ---


def spying(seen: list[str], name: str) -> Form:
    """The definition of a primitive, which leaves a note."""

    def form(*args: Any, **kwargs: Any) -> Array:
        seen.append(name)
        return getattr(DEFINITION, name)(*args, **kwargs)

    return form


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Primitives)])
def test_a_form_of_ones_own_is_called(name: str) -> None:
    seen: list[str] = []
    params, x = of("numpy", spec=SPEC), images()
    found = coatref.forward(params, x, backend=Primitives(**{name: spying(seen, name)}))
    assert set(seen) == {name}, f"{name} is not reached through the seam"
    np.testing.assert_array_equal(found, coatref.forward(params, x, backend="definition"))


def test_every_layer_goes_through_the_seam() -> None:
    """As many calls as the tree has layers; the dense layers of squeeze-excite belong to that primitive."""
    seen: list[str] = []
    forms = {field.name: spying(seen, field.name) for field in dataclasses.fields(Primitives)}
    params = of("numpy", spec=SPEC)
    coatref.forward(params, images(), backend=Primitives(**forms))
    layers = [name for name in params.flatten() if ".se." not in name]
    kernels = [params.flatten()[name].ndim for name in layers if name.endswith(".w")]
    means, gammas = (sum(name.endswith(end) for name in layers) for end in (".mean", ".gamma"))
    expected = {"dense": kernels.count(2), "depthwise_conv2d": kernels.count(3), "conv2d": kernels.count(4)}
    expected |= {"batch_norm": means, "layer_norm": gammas - means}
    assert {name: seen.count(name) for name in expected} == expected


def test_what_a_form_gives_is_used() -> None:
    constant = Primitives(softmax=lambda x: x * 0.0 + 0.25)
    assert np.all(coatref.forward(of("numpy"), images(), backend=constant) == 0.25)


def test_choosing_the_forms() -> None:
    x = images()
    assert primitives_for(x, "definition") is DEFINITION
    mine = Primitives(dense=DEFINITION.conv2d)
    assert primitives_for(x, mine) is mine
    assert primitives_for(x) == dataclasses.replace(DEFINITION, **library("numpy").primitives)


@pytest.mark.parametrize("backend", ["fast", "", "Definition", 0, {}, Primitives, True, np])
def test_a_wrong_backend_is_refused(backend: Any) -> None:
    with pytest.raises(InputError, match=r"backend must be None, 'definition' or a coatref\.primitives\.Primitives"):
        coatref.forward(of("numpy"), images(), backend=backend)


# --- third parties ---

THIRD = '''
import array_api_compat.numpy
import numpy

from coatref.primitives import DEFINITION
from coatref.registry import Library

called = []


class Array(numpy.ndarray):
    pass


class Namespace:
    """NumPy's functions, whose new arrays are of this library."""

    __name__ = "third"

    def __getattr__(self, name):
        return getattr(array_api_compat.numpy, name)

    def asarray(self, *args, **kwargs):
        return array_api_compat.numpy.asarray(*args, **kwargs).view(Array)


def dense(x, w, b=None):
    called.append("dense")
    return DEFINITION.dense(x, w, b)


SPACE = Namespace()
DESCRIPTION = Library(
    name="third",
    install="third-array",
    namespace=lambda: SPACE,
    to_numpy=lambda x: x.view(numpy.ndarray),
    primitives={"dense": dense},
)
'''


@pytest.fixture
def third(tmp_path: Path) -> Path:
    """A folder with an installed distribution that registers an array library, and tries to replace NumPy's."""
    (tmp_path / "third.py").write_text(THIRD, encoding="utf-8")
    info = tmp_path / "third_array-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-array\nVersion: 1.0\n", encoding="utf-8")
    entries = "[coatref.backends]\nthird = third:DESCRIPTION\nnumpy = third:DESCRIPTION\nabsent = nowhere:LIBRARY\n"
    (info / "entry_points.txt").write_text(entries, encoding="utf-8")
    return tmp_path


PREPARE = f"""
import numpy as np
import coatref
from coatref.registry import library, library_of, registered
from coatref.specification import Spec
spec = Spec.from_json({SPEC.to_json()!r})
expected = coatref.init(spec, 3, scheme="distinct")
x = np.random.default_rng(0).normal(size=(2, 9, 6, 3)).astype("float32")
"""


def test_a_library_of_a_third_party(third: Path) -> None:
    code = PREPARE + (
        "assert 'third' in registered()\n"
        "assert library('numpy').name == 'numpy' and library_of(x).name == 'numpy'\n"
        "assert 'third' not in sys.modules\n"  # found by its name alone until an array of it turns up
        "params = coatref.init(spec, 3, xp='third', scheme='distinct')\n"
        "import third\n"
        "assert all(type(array) is third.Array for array in params.flatten().values())\n"
        "assert params.flatten()['s0.conv1.w'].tobytes() == expected.flatten()['s0.conv1.w'].tobytes()\n"
        "assert library_of(x.view(third.Array)).name == 'third'\n"
        "one = coatref.forward(params, x.view(third.Array))\n"
        "count = len(third.called)\n"
        "two = coatref.forward(params, x.view(third.Array), backend='definition')\n"
        "assert count == len(third.called) > 10\n"
        "assert type(one) is third.Array and np.array_equal(one, two)\n"
        "assert np.array_equal(one, coatref.forward(expected, x, backend='definition')) and count == len(third.called)\n"
        "moved = expected.to(xp=third)\n"
        "assert type(moved['head']['classifier']['w']) is third.Array\n"
        "back = moved.to(xp='numpy')\n"
        "assert type(back['head']['classifier']['w']) is np.ndarray\n"
        "print('good')"
    )
    assert python(code, third) == "good"


def test_an_unregistered_library_is_used_by_the_standard_alone() -> None:
    code = PREPARE + (
        "import coatref.registry\n"
        "del coatref.registry.IN_TREE['array_api_strict']\n"
        "registered.cache_clear()\n"
        "import array_api_strict as strict\n"
        "from coatref.errors import InputError, LibraryError\n"
        "from coatref.tree import map_named\n"
        "assert 'array_api_strict' not in registered()\n"
        "params = coatref.Params(map_named(lambda name, array: strict.asarray(array), expected), spec)\n"
        "found = coatref.forward(params, strict.asarray(x))\n"
        "assert library_of(found).install == '' and library_of(found).name == 'array_api_strict'\n"
        "off = np.max(np.abs(np.from_dlpack(found) - coatref.forward(expected, x)))\n"
        "assert off < 1e-6, off\n"
        "back = params.to(xp='numpy').flatten()\n"
        "assert all(np.array_equal(back[name], array) for name, array in expected.flatten().items())\n"
        "double = params.to(dtype='float64')\n"
        "assert double['head']['classifier']['w'].dtype == strict.float64\n"
        "resized = params.resize(12, 9)\n"
        "assert coatref.forward(resized, strict.asarray(np.ones((1, 12, 9, 3), 'float32'))).shape == (1, 3)\n"
        "try:\n"
        "    coatref.forward(expected, strict.asarray(x))\n"
        "except LibraryError as error:\n"
        "    print(error)\n"
        "try:\n"
        "    coatref.init(spec, xp=strict)\n"
        "except InputError as error:\n"
        "    print('good')"
    )
    printed = python(code).splitlines()
    assert len(printed) == 2 and printed[1] == "good"
    assert "array_api_strict array and parameter s0.conv1.w a numpy array" in printed[0]
