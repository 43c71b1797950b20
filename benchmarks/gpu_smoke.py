"""A first look at CuPy's forms on a GPU, in a minute: do the kernels compile, is the network right, where does time go.

python -m benchmarks.gpu_smoke            # goes on after every failure, and ends with 1 where there was one
python -m benchmarks.gpu_smoke --compile  # only compiles the kernels, which CuPy keeps on disk
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import subprocess
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

import coatref
from coatref.primitives import DEFINITION

MODEL = "coatnet_0_rw_224"
TOLERANCE = {"float64": 1e-13, "float32": 1e-5, "float16": 3e-2}  # of the logits, by eye: the tests have derived bounds
failures: list[str] = []


def attempt(name: str, run: Callable[[], Any]) -> Any:
    """What it returns; a failure is told, and None returned."""
    try:
        return run()
    except Exception as error:  # noqa: BLE001 - told, and counted
        failures.append(name)
        told = "".join(traceback.format_exception(error))
        print(f"FAILED {name}\n{told[:600]}\n...\n{told[-1800:]}", flush=True)
        return None


def compiled(bits: int) -> None:
    """All kernels of one type."""
    from coatref.backends import cupy as backend
    from coatref.backends.cupy_steps import kernel_names

    began = time.perf_counter()
    for name in kernel_names(bits):
        function = backend.kernel(name, bits)
        spilt = function.local_size_bytes
        if spilt:
            print(f"  {name} of {bits} bits: {spilt} bytes a thread in local memory, {function.num_regs} registers")
    print(f"kernels of {bits} bits compiled and loaded in {time.perf_counter() - began:.1f} s", flush=True)


def primitives(dtype: str) -> None:
    """Every primitive at sizes of the real network."""
    import cupy

    from coatref.backends.cupy import LIBRARY

    random = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return random.standard_normal(shape).astype(dtype)

    x, se = (
        normal(2, 28, 28, 192),
        {"reduce": {"w": normal(192, 48) / 14}, "expand": {"w": normal(48, 192), "b": normal(192)}},
    )
    heads = {name: normal(2, 6, 196, 32) for name in "qkv"}
    calls: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("conv2d", {"x": normal(2, 64, 64, 3), "w": normal(3, 3, 3, 32), "b": normal(32)}, {"stride": 2}),
        ("conv2d", {"x": normal(2, 56, 56, 32), "w": normal(3, 3, 32, 64) / 17}, {"padding": "symmetric"}),
        ("depthwise_conv2d", {"x": x, "w": normal(3, 3, 192), "b": normal(192)}, {"stride": 2}),
        ("depthwise_conv2d", {"x": x, "w": normal(7, 7, 192)}, {}),
        ("max_pool", {"x": x}, {"size": 3}),
        ("avg_pool", {"x": x}, {}),
        ("global_avg_pool", {"x": x}, {}),
        ("layer_norm", {"x": x, "gamma": normal(192), "beta": normal(192)}, {"epsilon": 1e-6}),
        (
            "batch_norm",
            {"x": x, **{n: np.abs(normal(192)) for n in ("gamma", "beta", "mean", "var")}},
            {"epsilon": 1e-5},
        ),
        ("softmax", {"x": normal(2, 6, 196, 196)}, {}),
        ("squeeze_excite", {"x": x, **se}, {"activation": "relu"}),
        ("dense", {"x": x, "w": normal(192, 384) / 14, "b": normal(384)}, {}),
        ("relative_attention", {**heads, "bias": normal(6, 196, 196)}, {"scale": 32**-0.5}),
        *(("activation", {"x": x}, {"kind": kind}) for kind in ("gelu", "gelu_tanh", "silu", "relu", "mish", "tanh")),
    ]

    def mapped(function: Callable[[Any], Any], value: Any) -> Any:
        return (
            {key: mapped(function, each) for key, each in value.items()} if isinstance(value, dict) else function(value)
        )

    for name, arrays, options in calls:

        def check(name: str = name, arrays: Any = arrays, options: Any = options) -> None:
            wanted = getattr(DEFINITION, name)(**mapped(lambda a: a.astype("float64"), arrays), **options)
            found = cupy.asnumpy(LIBRARY.primitives[name](**mapped(cupy.asarray, arrays), **options))
            error = float(np.max(np.abs(found - wanted)) / np.max(np.abs(wanted)))
            print(f"  {dtype} {name:18} {error:.1e}", flush=True)
            assert error <= 100 * float(np.finfo(dtype).eps), f"{name} in {dtype} is off by {error:.1e}"

        attempt(f"{name} in {dtype}", check)


def networks() -> None:
    """The prepared network in every type, against the definition in float64."""
    import cupy

    exact = coatref.init(coatref.spec(f"timm/{MODEL}"), 0, dtype="float16", scheme="distinct").to(dtype="float64")
    x = np.random.default_rng(0).standard_normal((3, 224, 224, 3)).astype("float16").astype("float64")
    wanted = coatref.forward(exact, x)
    for dtype, tolerance in TOLERANCE.items():

        def check(dtype: str = dtype, tolerance: float = tolerance) -> None:
            prepared = coatref.prepare(exact.to(xp="cupy", dtype=dtype))
            for batch in (1, 3):
                found = cupy.asnumpy(coatref.forward(prepared, cupy.asarray(x[:batch], dtype=dtype))).astype("float64")
                error = float(np.max(np.abs(found - wanted[:batch])) / np.max(np.abs(wanted)))
                print(f"  prepared, {dtype}, batch {batch}: off by {error:.1e}", flush=True)
                assert error <= tolerance

        attempt(f"network in {dtype}", check)


def timings() -> None:
    """Where the time of a forward pass goes: the host, and every kernel."""
    import cupy

    for dtype in ("float32", "float16"):
        params = coatref.init(coatref.spec(f"timm/{MODEL}"), 0, dtype=dtype, scheme="distinct").to(xp="cupy")
        prepared = coatref.prepare(params)
        for batch in (1, 64):
            x = cupy.asarray(np.random.default_rng(0).standard_normal((batch, 224, 224, 3)), dtype=dtype)
            whole, host = times(functools.partial(coatref.forward, prepared, x))
            print(
                f"  {dtype}, batch {batch}: {whole:.2f} ms, of which the host takes {host:.2f} ms to start everything"
            )
            attempt(f"profile of {dtype}, batch {batch}", functools.partial(profile, prepared, x))


def times(run: Callable[[], Any], rounds: int = 15) -> tuple[float, float]:
    """Milliseconds of a run, and of its calls alone: the medians."""
    import cupy

    device, whole, host = cupy.cuda.Device(), [], []
    for number in range(rounds + 3):
        began = time.perf_counter()
        kept = run()
        returned = time.perf_counter()
        device.synchronize()
        if number >= 3:
            host.append(1000 * (returned - began))
            whole.append(1000 * (time.perf_counter() - began))
        del kept
    return statistics.median(whole), statistics.median(host)


def profile(prepared: Any, x: Any) -> None:
    """Milliseconds of each kernel in one pass, by events around every launch (which costs a few microseconds each)."""
    import cupy

    from coatref.backends import cupy as backend
    from coatref.backends import cupy_steps, network
    from coatref.tap import no_tap

    events: list[tuple[str, Any, Any]] = []

    def timed(name: str, start: Callable[[], Any]) -> None:
        before, behind = cupy.cuda.Event(), cupy.cuda.Event()
        before.record()
        start()
        behind.record()
        events.append((name, before, behind))

    real = backend.STEPS.device
    device = dataclasses.replace(
        real,
        launch=lambda name, *rest: timed(name, lambda: real.launch(name, *rest)),
        product=lambda p: timed("product" if p.batch == 1 else "products of attention", lambda: real.product(p)),
    )
    fused = cupy_steps.fused(cupy_steps.Steps(device))
    for _ in range(2):
        events.clear()
        network.run(prepared, x, fused, no_tap)
        cupy.cuda.Device().synchronize()
    spent: dict[str, list[float]] = defaultdict(list)
    for name, before, behind in events:
        spent[name].append(cupy.cuda.get_elapsed_time(before, behind))
    for name, each in sorted(spent.items(), key=lambda item: -sum(item[1]))[:9]:
        print(f"    {name:22} {sum(each):7.3f} ms in {len(each)}")


def main() -> int:
    """Everything, and how many failures there were."""
    import cupy

    if "--compile" in sys.argv:
        bits = int(sys.argv[-1])
        attempt(f"compiling for {bits} bits", functools.partial(compiled, bits))
        return bool(failures)
    itself = [sys.executable, "-m", "benchmarks.gpu_smoke", "--compile"]
    compilers = [subprocess.Popen([*itself, str(bits)]) for bits in (16, 64)]  # beside each other
    attempt("compiling for 32 bits", functools.partial(compiled, 32))
    failures.extend(f"compiler ended with {code}" for each in compilers if (code := each.wait()))
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    print(f"{properties['name'].decode()}, CuPy {cupy.__version__}, CUDA {cupy.cuda.runtime.runtimeGetVersion()}")
    for dtype in TOLERANCE:
        attempt(f"primitives in {dtype}", functools.partial(primitives, dtype))
    attempt("networks", networks)
    attempt("timings", timings)
    print(f"smoke: {len(failures)} failures {failures}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
