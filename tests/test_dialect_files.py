"""Every dialect through real files: out and in again to the bit, and what the other project makes of them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kecam_models import randomised as kecam_model
from kecam_models import require_kecam
from timm_import import require_timm
from timm_models import images, log_coordinates, randomised

import coatref
from coatref.conformance.targets.timm import arguments
from coatref.weights.dialects import DIALECTS
from coatref.weights.resize import geometric_resize
from coatref.weights.written import write_dialect

PAPER = tuple(f"coatnet_{number}" for number in range(8))
LAYOUTS = [(dialect, layout) for dialect in DIALECTS for layout in DIALECTS[dialect].layouts]


def same_bits(ours: coatref.Params, others: coatref.Params) -> None:
    """The same spec, names, types and bits."""
    assert ours.spec == others.spec
    mine, theirs = ours.flatten(), others.flatten()
    assert list(mine) == list(theirs)
    for name, array in mine.items():
        assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape), name
        assert array.tobytes() == theirs[name].tobytes(), name


@st.composite
def small_specs(draw: st.DrawFn, dialect: str) -> coatref.Spec:
    """A named spec of a dialect at sizes of one's own, on images that are not square."""
    names = [name for name in DIALECTS[dialect].specs() if dialect != "coatref" or name in PAPER]
    name = draw(st.sampled_from(names))
    native = coatref.spec(name)
    runs = [run for stage in native.stages for run in stage]
    stem = getattr(native.stem, "widths", (0,))
    with_stem = dialect not in ("timm", "kecam")
    depths = [draw(st.integers(1, 2)) for _ in runs]
    if "cc" in name:  # a stage of two runs takes the depth of both
        depths = [1, 1, 2, draw(st.integers(2, 3))]
    count = len(depths)
    factor = stem[-1] if "next" in name else native_head_size(native)
    widths = [factor * number for number in sorted(draw(st.lists(st.integers(1, 3), min_size=count, max_size=count)))]
    if "next" in name:
        widths = [factor * 2**index for index in range(count)]
    if count == 5 and not with_stem:
        widths = [factor * number for number in (1, 1, 2, 3, 3)]  # its two runs of S3 differ
    if dialect == "chinhsuanwu":
        widths = [draw(st.integers(3, 40)) for _ in widths]
    if with_stem:
        depths, widths = [2, *depths], [draw(st.integers(3, 20)), *widths]
    sides = (64, 96, 128) if dialect != "google" else (64, 96, 112)
    size = draw(st.sampled_from([(height, width) for height in sides for width in sides]))
    classes = draw(st.integers(1, 9))
    return coatref.spec(name, depths=depths, widths=widths, image_size=size, classes=classes)


def native_head_size(spec: coatref.Spec) -> int:
    """Channels of a head; widths are multiples of it."""
    found = [run.attention.head_size for stage in spec.stages for run in stage if run.kind == "transformer"]
    return found[0] if found else 32


@pytest.mark.parametrize(("dialect", "layout"), LAYOUTS)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_out_and_in_again_gives_every_bit(tmp_path: Path, dialect: str, layout: str, data: st.DataObject) -> None:
    spec = data.draw(small_specs(dialect))
    dtype = data.draw(st.sampled_from(["float16", "float32", "float64"]))
    params = coatref.init(spec, data.draw(st.integers(0, 99)), dtype=dtype, scheme="distinct")
    same_bits(coatref.convert(coatref.export(params, dialect, layout=layout), spec), params)
    endings = [".safetensors", ".npz"]
    if layout in ("keras", "google", "tfmodels") and importlib.util.find_spec("h5py"):
        endings.append(".h5")
    for ending in endings:
        path = tmp_path / f"weights{ending}"
        assert write_dialect(params, path, dialect, layout=layout) == layout
        same_bits(coatref.load(path, spec), params)


# --- timm ---


@pytest.fixture(scope="module")
def timm() -> Any:
    return require_timm()


@pytest.mark.parametrize("name", ["coatnet_0_rw_224", "coatnet_rmlp_2_rw_224", "coatnext_nano_rw_224", "coatnet_0_224"])
def test_timm_takes_our_file_strictly_and_agrees(timm: Any, tmp_path: Path, name: str) -> None:
    import torch
    from safetensors.torch import load_file

    own = coatref.spec(f"timm/{name}")
    widths = tuple(own.stem.width * 2**index for index in range(4)) if "next" in name else (32, 64, 96, 128)
    spec = coatref.spec(own.name, image_size=(64, 96), classes=7, depths=(1, 1, 2, 1), widths=widths)
    params = coatref.init(spec, 4, dtype="float64", scheme="distinct")
    write_dialect(params, tmp_path / "model.safetensors", "timm")
    model = timm.create_model(name, pretrained=False, **arguments(name, own, spec)).double().eval()
    model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    for module in model.modules():
        if hasattr(module, "rel_coords_log"):
            module.rel_coords_log.copy_(log_coordinates(*module.window_size))
    x = images(6, 2, 3, 64, 96)
    with torch.no_grad():
        theirs = model(x).numpy()
    ours = coatref.forward(params, x.permute(0, 2, 3, 1).numpy())
    assert np.max(np.abs(ours - theirs)) <= 1e-11 * np.max(np.abs(theirs))


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence", "ignore:torch.searchsorted")
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(
    ("source", "target"), [((7, 7), (9, 9)), ((14, 14), (18, 18)), ((4, 4), (3, 3)), ((5, 5), (4, 9)), ((1, 1), (3, 2))]
)
def test_tables_are_resized_bit_for_bit_as_timm_does(
    timm: Any, dtype: str, source: tuple[int, int], target: tuple[int, int]
) -> None:
    import torch

    rows, columns = (2 * side - 1 for side in source)
    table = np.random.default_rng(3).normal(size=(5, rows, columns)).astype(dtype)
    theirs = timm.layers.resize_rel_pos_bias_table(
        torch.from_numpy(table.reshape(5, -1).T.copy()), target, ((2 * target[0] - 1) * (2 * target[1] - 1), 5)
    )
    ours = geometric_resize(table, 2 * target[0] - 1, 2 * target[1] - 1)
    assert ours.dtype == table.dtype
    assert np.array_equal(ours.reshape(5, -1).T, theirs.numpy())


def test_checkpoints_of_training(timm: Any, tmp_path: Path) -> None:
    """timm's own layout: arguments, optimiser and an averaged copy beside the weights, behind DataParallel's prefix."""
    import argparse

    import torch

    model, average = randomised(timm, "test_coatnet", 5), randomised(timm, "test_coatnet", 6)
    content = {
        "epoch": 3,
        "arch": "test_coatnet",
        "state_dict": {f"module.{name}": value for name, value in model.state_dict().items()},
        "state_dict_ema": {f"module.{name}": value for name, value in average.state_dict().items()},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "version": 2,
        "args": argparse.Namespace(model="test_coatnet", lr=0.1),
        "metric": 81.5,
    }
    torch.save(content, tmp_path / "last.pth.tar")
    (tmp_path / "last.pth.tar").rename(tmp_path / "last.pth")
    for ema, other in ((True, average), (False, model)):
        found = coatref.load(tmp_path / "last.pth", ema=ema)
        same_bits(found, coatref.convert(other.state_dict(), "timm/test_coatnet"))


def test_the_size_of_the_images_is_asked_for_or_an_error(tmp_path: Path) -> None:
    spec = coatref.spec("timm/test_coatnet", image_size=96)
    params = coatref.init(spec, 3, scheme="distinct", dtype="float64")
    write_dialect(params, tmp_path / "m.safetensors", "timm")
    with pytest.raises(coatref.WeightsError, match=r"misshapen: .*relative_position_bias_table.*image_size="):
        coatref.load(tmp_path / "m.safetensors", "timm/test_coatnet")
    for image_size in (160, (128, 192)):
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        found = coatref.load(tmp_path / "m.safetensors", "timm/test_coatnet", image_size=image_size)
        same_bits(found, params.resize(*size))
        theirs = coatref.load(tmp_path / "m.safetensors", image_size=image_size, resize="timm")
        assert theirs.spec == found.spec
        name = "s3.1.attn.relative_bias.table"
        rows, columns = found.flatten()[name].shape[1:]
        assert np.array_equal(theirs.flatten()[name], geometric_resize(params.flatten()[name], rows, columns))
        assert not np.array_equal(theirs.flatten()[name], found.flatten()[name])
    same_bits(coatref.load(tmp_path / "m.safetensors", image_size=96), params)
    wrong: Any
    for wrong in ("96", (96,), 96.0, (96, 96, 96), [96, "96"], True):
        with pytest.raises(coatref.InputError, match="image_size is a height and a width"):
            coatref.load(tmp_path / "m.safetensors", image_size=wrong)
    wrong = "bicubic"
    with pytest.raises(coatref.InputError, match="resized as paper or timm"):
        coatref.load(tmp_path / "m.safetensors", image_size=96, resize=wrong)
    with pytest.raises(coatref.SizeError):
        coatref.load(tmp_path / "m.safetensors", image_size=(16, 96))


# --- keras_cv_attention_models ---


@pytest.mark.parametrize(
    "spec",
    [
        coatref.spec("kecam/CoAtNet0", image_size=64),
        coatref.spec("kecam/CoAtNetT", image_size=96, classes=7, depths=(1, 1, 2, 1), widths=(32, 64, 96, 128)),
    ],
    ids=["CoAtNet0", "tiny"],
)
def test_kecams_own_h5_file(tmp_path: Path, spec: coatref.Spec) -> None:
    """What the package writes, read without being told what it is, computes what the package computes."""
    require_kecam()
    import torch

    model = kecam_model(spec, 9)
    model.save_weights(str(tmp_path / "weights.h5"))
    params = coatref.load(tmp_path / "weights.h5")
    assert params.spec.replace(name=spec.name) == spec and params.spec.name.startswith("kecam/")
    x = images(6, 2, 3, *spec.image_size)
    with torch.no_grad():
        theirs = model(x).numpy()
    ours = coatref.forward(params, x.permute(0, 2, 3, 1).numpy())
    assert np.max(np.abs(ours - theirs)) <= 1e-10 * np.max(np.abs(theirs))


def test_kecam_reads_our_h5_file(tmp_path: Path) -> None:
    """By its own `load_weights`, channels last, as it reads those that it has published."""
    require_kecam()
    import torch
    from kecam_models import factory

    spec = coatref.spec("kecam/CoAtNet0", image_size=64, classes=7, depths=(1, 1, 2, 1), widths=(32, 64, 96, 128))
    params = coatref.init(spec, 3, dtype="float64", scheme="distinct")
    write_dialect(params, tmp_path / "weights.h5", "kecam")
    model = factory(spec).double().eval()
    model.load_weights(str(tmp_path / "weights.h5"))
    x = images(6, 2, 3, 64, 64)
    with torch.no_grad():
        theirs = model(x).numpy()
    ours = coatref.forward(params, x.permute(0, 2, 3, 1).numpy())
    assert np.max(np.abs(ours - theirs)) <= 1e-5 * np.max(np.abs(theirs))


# --- memory ---

PEAK = """
import pathlib, re, sys
import coatref

def peak():  # of this process alone, where ru_maxrss begins with that of the one that made it
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) * 1024

spec = coatref.Spec.from_json(sys.argv[2])
coatref.convert(coatref.export(coatref.init("timm/test_coatnet", 0), "timm"))  # what is imported along the way
before = peak()
params = coatref.load(sys.argv[1], spec)
print(peak() - before)
"""


def peak_of(tmp_path: Path, spec: coatref.Spec, dtype: str) -> tuple[int, int]:
    """Bytes that loading takes at its peak, and that the arrays have."""
    params = coatref.init(spec, 0, dtype=dtype, xp="numpy")
    held = sum(array.nbytes for array in params.flatten().values())
    path = tmp_path / "model.safetensors"
    write_dialect(params, path, "timm")
    del params
    command = [sys.executable, "-c", PEAK, str(path), spec.to_json()]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=600).stdout
    path.unlink()
    return int(printed), held


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/status, which Linux has")
def test_the_memory_that_loading_takes(tmp_path: Path) -> None:
    """One tensor after the other: never more than a fifth above what the arrays take in the end."""
    peak, held = peak_of(tmp_path, coatref.spec("timm/coatnet_2_rw_224"), "float32")
    assert held > 290 * 10**6
    assert 0.9 * held < peak <= 1.2 * held


@pytest.mark.deep
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/status, which Linux has")
def test_the_memory_that_the_largest_published_network_takes(tmp_path: Path) -> None:
    peak, held = peak_of(tmp_path, coatref.spec("timm/coatnet_5_224"), "float32")
    print(f"peak {peak:,} of {held:,} bytes, {peak / held:.3f}")
    assert held > 2.7 * 10**9
    assert peak <= 1.2 * held
