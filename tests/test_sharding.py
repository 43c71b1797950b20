"""A network over eight devices gives the numbers of one; each device holds its part; `docs/scale.md` is true.

Devices are forced on the CPU, which JAX does only before it starts: this file runs itself (`main`) in a process with eight,
once, and judges here what that printed. `python tests/test_sharding.py tables` writes the document's tables anew.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import json
import math
import os
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import coatref
from coatref.backends import sharding
from coatref.specification import Attention, ConvStem, Head, MBConv, Spec, SqueezeExcite, Transformer
from coatref.tree import flatten

Array = Any
ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "scale.md"
MESHES = ((8, 1), (4, 2), (2, 4), (1, 8))  # of data and model

SPEC = Spec(
    name="sharded",
    image_size=(16, 12),
    stem=ConvStem(widths=(8, 8), bias=(True, False)),
    stages=(
        (MBConv(depth=1, width=8, expansion=4.0, squeeze_excite=SqueezeExcite(ratio=0.25)),),
        (Transformer(depth=1, width=16, attention=Attention(head_size=2)),),  # 8 heads, for every mesh
        (Transformer(depth=1, width=12, stride=1, attention=Attention(head_size=4)),),  # 3 heads, for none
    ),
    head=Head(classes=5),
)
BATCH = 8


# --- in the process with eight devices ---


def main() -> None:
    """Everything that needs eight devices, as one JSON object."""
    found: dict[str, Any] = {"devices": len(jax.devices())}
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            found |= {f"{dtype} {key}": value for key, value in of_type(dtype).items()}
    found["document"] = run_document()
    print("FOUND " + json.dumps(found))


def compiled(function: Callable[..., Any], *args: Any) -> Any:
    """The program, not optimised: fast code is of no use here."""
    options: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
    return jax.jit(function).lower(*args).compile(options)


def loss(params: coatref.Params, x: Array) -> Array:
    """A scalar in which every logit of every image has its own weight."""
    logits = coatref.forward(params, x)
    return (logits * jax.numpy.cos(jax.numpy.arange(float(logits.size), dtype=x.dtype)).reshape(logits.shape)).sum()


def of_type(dtype: str) -> dict[str, Any]:
    """Errors in moves of the output, shards and collectives, for all meshes."""
    exact, drawn, x = network(dtype)
    reference, move = coatref.forward(exact, drawn, backend="definition"), units.sensitivity(exact, drawn, dtype)
    params = exact.to(xp="jax", dtype=dtype)
    fast, images = coatref.prepare(params), jax.numpy.asarray(x)
    found: dict[str, Any] = {}

    def distance(output: Array) -> float:
        return float(np.max(np.abs(np.asarray(output, np.float64) - reference))) / move

    for shape in MESHES if dtype == "float32" else [(2, 4)]:
        mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        split = jax.device_put(images, sharding.images(mesh))
        for kind, tree in (("definition", params), ("prepared", fast)):
            placed = jax.device_put(tree, sharding.shardings(tree, mesh))
            program = compiled(coatref.forward, placed, split)
            output = program(placed, split)
            found[f"{kind} {shape}"] = {
                "moves": distance(output),
                "by image": output.sharding.is_equivalent_to(sharding.images(mesh), 2),
                "shards": {name: array.addressable_shards[0].data.shape for name, array in flatten(placed)},
                "bytes": sum(array.addressable_shards[0].data.nbytes for _, array in flatten(placed)),
                "said": sharding.bytes_of_parameters(tree, mesh),
                "collectives": collectives(program.as_text()),
            }
        if shape == (2, 4):
            placed = jax.device_put(params, sharding.shardings(params, mesh))
            found["wrong"] = distance(
                compiled(functools.partial(without_sums, mesh=mesh), placed, split)(placed, split)
            )
            if dtype == "float64":
                found["gradient"] = gradient_moves(exact, dtype, placed, split)
            else:
                few = SPEC.replace(stages=SPEC.stages[:1])  # every operation is compiled by itself here
                eager = coatref.init(few, 3, xp="jax")
                one = np.asarray(coatref.forward(eager.to(xp="numpy", dtype="float64"), drawn))
                many = coatref.forward(jax.device_put(eager, sharding.shardings(eager, mesh)), split)
                found["eager"] = float(np.max(np.abs(np.asarray(many) - one)))
                found["eager move"] = units.sensitivity(eager.to(xp="numpy", dtype="float64"), drawn, dtype)
                prepared = jax.jit(coatref.prepare, out_shardings=sharding.shardings(fast, mesh))(placed)
                found["prepared there"] = distance(compiled(coatref.forward, prepared, split)(prepared, split))
    return found


def network(dtype: str) -> tuple[coatref.Params, np.ndarray, np.ndarray]:
    """Parameters and images in float64 that `dtype` holds exactly, and the images in that type."""
    params = coatref.init(SPEC, 3, dtype=dtype, scheme="distinct").to(dtype="float64")
    shape = (BATCH, *SPEC.image_size, SPEC.channels)
    x = np.random.default_rng(4).normal(size=shape).astype(dtype)
    return params, x.astype(np.float64), x


def gradient_moves(exact: coatref.Params, dtype: str, placed: coatref.Params, split: Array) -> float:
    """The error of the gradient over devices, in moves of each array of it on one device under trials of one unit."""
    _, drawn, _ = network(dtype)
    gradient = compiled(jax.grad(loss), exact.to(xp="jax", dtype=dtype), jax.numpy.asarray(drawn.astype(dtype)))

    def of(params: coatref.Params, x: np.ndarray) -> dict[str, np.ndarray]:
        tree = gradient(params.to(xp="jax", dtype=dtype), jax.numpy.asarray(x.astype(dtype)))
        return {name: np.asarray(array, np.float64) for name, array in flatten(tree)}

    whole = of(exact, drawn)
    largest = max(float(np.max(np.abs(array))) for array in whole.values())
    moves = dict.fromkeys(whole, units.ROUNDOFF[dtype] * largest)
    for trial in range(units.PERTURBATIONS):
        random = np.random.default_rng(trial)
        shaken = of(units.shaken_params(exact, dtype, random), units.shaken(drawn, dtype, random))
        moves = {name: max(move, float(np.max(np.abs(shaken[name] - whole[name])))) for name, move in moves.items()}
    there = compiled(jax.grad(loss), placed, split)(placed, split)
    return max(float(np.max(np.abs(np.asarray(array) - whole[name]))) / moves[name] for name, array in flatten(there))


def without_sums(params: coatref.Params, x: Array, mesh: Any) -> Array:
    """A planted fault: every device runs the network on its shards, and nobody adds up what the second layers give."""
    specs = jax.tree.map(lambda each: each.spec, sharding.shardings(params, mesh))
    data = sharding.images(mesh).spec
    return jax.shard_map(unchecked, mesh=mesh, in_specs=(specs, data), out_specs=data, check_vma=False)(params, x)


def unchecked(params: coatref.Params, x: Array) -> Array:
    """The network on shards, whose shapes `forward` has no reason to refuse."""
    return coatref.forward(params, x)


def collectives(program: str) -> dict[str, int]:
    """How often a compiled program sends what between devices."""
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    return dict(collections.Counter(re.findall(rf" = \S+ ({kinds})(?:-start)?\(", program)))


def run_document() -> list[str]:
    """Run the document's Python, all blocks as one program; what it printed."""
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(printed):
        program = Path(folder) / "scale.py"
        program.write_text("\n".join(re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)))
        runpy.run_path(str(program))
    return printed.getvalue().splitlines()


# --- here ---


@functools.cache
def found() -> dict[str, Any]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    result: dict[str, Any] = json.loads(line.removeprefix("FOUND "))
    assert result["devices"] == 8
    return result


CASES = [*(("float32", shape) for shape in MESHES), ("float64", (2, 4))]


@pytest.mark.parametrize("kind", ["definition", "prepared"])
@pytest.mark.parametrize(("dtype", "shape"), CASES)
def test_the_numbers_of_one_device(dtype: str, shape: tuple[int, int], kind: str) -> None:
    case = found()[f"{dtype} {kind} {shape}"]
    assert case["moves"] <= units.NETWORK_UNITS
    assert case["by image"]


def test_the_gradient_of_one_device() -> None:
    assert found()["float64 gradient"] <= units.NETWORK_UNITS


def test_eager_and_prepared_over_devices() -> None:
    assert found()["float32 eager"] <= units.NETWORK_UNITS * found()["float32 eager move"]
    assert found()["float32 prepared there"] <= units.NETWORK_UNITS


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_left_out_are_found_out(dtype: str) -> None:
    assert found()[f"{dtype} wrong"] > 1000 * units.NETWORK_UNITS


@pytest.mark.parametrize("shape", MESHES)
def test_each_device_holds_its_part(shape: tuple[int, int]) -> None:
    parts = shape[1]
    shards = {name: tuple(size) for name, size in found()[f"float32 definition {shape}"]["shards"].items()}
    prepared = {name: tuple(size) for name, size in found()[f"float32 prepared {shape}"]["shards"].items()}
    assert shards["s0.conv1.w"] == (3, 3, 3, 8 // parts)
    assert shards["s0.conv2.w"] == (3, 3, 8 // parts, 8)
    assert shards["s1.0.expand.w"] == prepared["s1.0.expand.w"] == (8, 32 // parts)
    assert shards["s1.0.depthwise.w"] == (3, 3, 32 // parts)
    assert shards["s1.0.depthwise_norm.var"] == (32 // parts,)
    assert shards["s1.0.se.expand.b"] == (32 // parts,)
    assert shards["s1.0.shrink.w"] == (32 // parts, 8)
    assert shards["s1.0.pre_norm.gamma"] == (8,)
    assert shards["s2.0.attn.q.w"] == (8, 16 // parts)
    assert shards["s2.0.attn.o.w"] == (16 // parts, 16)
    assert shards["s2.0.attn.relative_bias.table"][0] == 8 // parts
    assert prepared["s2.0.attn.bias"][0] == 8 // parts
    assert prepared["s2.0.attn.qkv.w"] == (8, 48 // parts)
    assert shards["s2.0.ffn.shrink.w"] == (64 // parts, 16)
    assert shards["s3.0.attn.q.w"] == (16, 12)  # 3 heads
    assert shards["s3.0.ffn.expand.w"] == (12, 48 // parts)
    assert shards["head.classifier.b"] == (5,)


@pytest.mark.parametrize("kind", ["definition", "prepared"])
@pytest.mark.parametrize("shape", MESHES)
def test_bytes_are_those_of_the_devices(shape: tuple[int, int], kind: str) -> None:
    case = found()[f"float32 {kind} {shape}"]
    assert case["bytes"] == case["said"]


@pytest.mark.parametrize("shape", MESHES)
def test_nothing_is_sent_but_the_sums(shape: tuple[int, int]) -> None:
    """One sum for each pair of layers and squeeze-excite; attention of 3 heads is whole on each device and has none."""
    if shape[1] == 1:
        assert found()[f"float32 definition {shape}"]["collectives"] == {}
        return
    pairs = 7 if 12 % shape[1] == 0 else 6  # stem, MBConv 2, Transformers 2 + 1, and the head's 12 hidden channels
    assert found()[f"float32 definition {shape}"]["collectives"] == {"all-reduce": pairs}
    prepared = found()[f"float32 prepared {shape}"]["collectives"]
    assert prepared["all-reduce"] == pairs and set(prepared) == {"all-reduce", "collective-permute"}  # of q, k and v


def test_mesh_without_the_axis_puts_all_everywhere() -> None:
    mesh = jax.sharding.AbstractMesh((4,), ("data",))
    params = sharding.abstract(coatref.spec("coatnet_0"))
    assert all(each.is_fully_replicated for each in jax.tree.leaves(sharding.shardings(params, mesh)))
    assert sharding.bytes_of_parameters(params, mesh) == 4 * sum(math.prod(array.shape) for _, array in flatten(params))


def test_the_document_runs() -> None:
    assert found()["document"] == re.findall(r"# prints: (.*)", DOCUMENT.read_text())


# --- the tables ---


def parameters_table() -> str:
    """Bytes of coatnet_7's parameters on each device."""
    lines = ["| devices (data x model) | float32 | bfloat16 | prepared for 224, bfloat16 |", "|---|---|---|---|"]
    spec = coatref.spec("coatnet_7")
    for data, model in ((1, 1), (8, 1), (1, 8), (2, 4), (2, 8), (1, 16), (4, 8), (2, 16), (1, 32)):
        mesh = jax.sharding.AbstractMesh((data, model), ("data", "model"))
        definition = [sharding.bytes_of_parameters(sharding.abstract(spec, d), mesh) for d in ("float32", "bfloat16")]
        prepared = sharding.bytes_of_parameters(prepared_shapes(), mesh)
        cells = (f"{size / 1e9:.2f} GB" for size in (*definition, prepared))
        lines.append(f"| {data * model} ({data} x {model}) | {' | '.join(cells)} |")
    return "\n".join(lines)


@functools.cache
def prepared_shapes() -> Any:
    return jax.eval_shape(coatref.prepare, sharding.abstract(coatref.spec("coatnet_7"), "bfloat16"))


def activations_table() -> str:
    """Numbers of activations of coatnet_7 alive at once for one image, as bytes."""
    lines = ["| model axis | 224, float32 | 224, bfloat16 | 512, float32 | 512, bfloat16 |", "|---|---|---|---|---|"]
    spec = coatref.spec("coatnet_7")
    for parts in (1, 4, 8, 16, 32):
        counts = [sharding.numbers_of_activations(spec, side, side, parts) for side in (224, 512)]
        cells = (f"{count * size / 1e6:.0f} MB" for count in counts for size in (4, 2))
        lines.append(f"| {parts} | {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES = {"parameters": parameters_table, "activations": activations_table}


def with_tables(text: str) -> str:
    for name, make in TABLES.items():
        pattern, table = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", make()
        text, count = re.subn(pattern, rf"\g<1>{table}\n\g<2>", text, flags=re.DOTALL)
        assert count == 1, name
    return text


def test_tables_are_what_the_code_says() -> None:
    assert DOCUMENT.read_text() == with_tables(DOCUMENT.read_text())


def test_activations_counted_are_near_what_a_program_takes() -> None:
    """XLA's own plan for one image of a network without parameters to speak of: at least a third, at most twice."""
    spec = coatref.spec("coatnet_0").replace(image_size=(64, 64))
    params, x = sharding.abstract(spec), jax.eval_shape(lambda: jax.numpy.zeros((1, 64, 64, 3), np.float32))
    plan = compiled(coatref.forward, params, x).memory_analysis()
    counted = 4 * sharding.numbers_of_activations(spec, 64, 64)
    assert counted / 3 <= plan.temp_size_in_bytes <= 2 * counted, (plan.temp_size_in_bytes, counted)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    import units

    if sys.argv[1:] == ["tables"]:
        DOCUMENT.write_text(with_tables(DOCUMENT.read_text()))
    else:
        main()
else:
    import units
