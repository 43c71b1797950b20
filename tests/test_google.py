"""Google's dialect against what its code was found to be, or where TensorFlow is installed against that code itself."""

from __future__ import annotations

import base64
import functools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_tf
import numpy as np
import pytest
import tensorflow_bundle as bundle
from google_tf import numbers
from hostile_files import (
    MEGABYTES,
    QUICK,
    SECONDS,
    damages,
    memory_limit,
    read_all,
    read_or_refused,
    refused,
    time_limit,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_models import FOLDER, images, recorded

import coatref
from coatref.conformance.judge import check
from coatref.errors import FileFormatError
from coatref.specification import google as google_specs
from coatref.specification import paper
from coatref.specification.parts import MBConv, RelativeBias, Run, Transformer
from coatref.tree import flatten
from coatref.weights import google as table
from coatref.weights.export import export
from coatref.weights.recognise import recognised

LAYOUT = {"google": "google", "google_mixed": "google", "tfmodels": "tfmodels"}  # of what is recorded
TABLE = "s3.0.attn.relative_bias.table"
FLOAT32 = 1e-5  # what two computations in float32 may differ by, of the largest logit


def made(name: str) -> coatref.Spec:
    """The spec of a recorded model."""
    arguments = dict(recorded(name).made)
    return coatref.spec(arguments.pop("name"), **arguments)


def variables(spec: coatref.Spec, layout: str = "google") -> dict[str, np.ndarray]:
    """A value for each of their variables."""
    return {name: numbers(name, shape) for name, shape in table.expected(spec, layout).items()}


def difference(found: np.ndarray, right: np.ndarray) -> float:
    assert found.shape == right.shape
    return float(np.max(np.abs(found - right)) / np.max(np.abs(right)))


def with_runs(spec: coatref.Spec, change: Callable[[Run], Run]) -> coatref.Spec:
    return spec.replace(stages=tuple(tuple(change(run) for run in stage) for stage in spec.stages))


def with_bias(spec: coatref.Spec, **changes: Any) -> coatref.Spec:
    """The spec with some fields of every relative bias changed."""
    bias = RelativeBias(**({"orientation": "key_minus_query"} | changes))
    return paper.with_attention(spec, relative_bias=bias)


def with_options(spec: coatref.Spec) -> coatref.Spec:
    """The spec under `pool_type` "max" and `downsample_loc` "expand_conv"."""

    def changed(run: Run) -> Run:
        pooled = replace(run, shortcut_pool=replace(run.shortcut_pool, kind="max"))
        if isinstance(pooled, Transformer):
            return replace(pooled, main_pool=replace(pooled.main_pool, kind="max"))
        assert isinstance(pooled, MBConv)
        return replace(pooled, stride_at="expand")

    return with_runs(spec, changed)


def second_logits(params: coatref.Params, x: np.ndarray, **options: Any) -> np.ndarray:
    """The logits by the stand-in for their code."""
    pytest.importorskip("torch", reason="needs torch, which is not installed")
    from google_model import logits

    return logits(export(params, "google"), x, **options)


# --- specs ---


def test_they_are_the_papers_networks_under_their_options() -> None:
    assert google_specs.names() == tuple(f"google/{name}" for name in (*paper.FAMILY, *paper.MIXED_FAMILY))
    for name in google_specs.names():
        theirs = coatref.spec(name)
        own = with_bias(coatref.spec(name.removeprefix("google/")))
        assert with_options(theirs).replace(name=own.name, preprocessing=own.preprocessing) == own
        assert theirs.head == own.head and theirs.stem == own.stem


@pytest.mark.parametrize("name", google_specs.names())
def test_the_number_of_parameters_is_that_of_their_graph(name: str) -> None:
    assert coatref.spec(name).num_parameters() == recorded("google").parameters[name]


# --- recorded models ---


@pytest.mark.parametrize("name", LAYOUT)
def test_names_and_shapes(name: str) -> None:
    shapes, spec = recorded(name).shapes, made(name)
    bare = {key.removesuffix(":0"): shape for key, shape in shapes.items()}
    assert table.expected(spec, LAYOUT[name]) == bare
    assert table.layout_of(shapes) == LAYOUT[name]
    assert table.plain(shapes) == {key.removesuffix(":0"): key for key in shapes}


@pytest.mark.parametrize("name", LAYOUT)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits(name: str, dtype: str) -> None:
    spec, record = made(name), recorded(name)
    params = coatref.convert(variables(spec, LAYOUT[name]), spec, dtype=dtype)
    x = images(len(record.logits), *spec.image_size).astype(dtype)
    assert difference(coatref.forward(params, x), record.logits) <= FLOAT32
    flat = params.flatten()
    wrong = coatref.convert({key: np.flip(a, (1, 2)) if key.endswith(".table") else a for key, a in flat.items()}, spec)
    assert difference(coatref.forward(wrong, x), record.logits) > 100 * FLOAT32


def test_logits_under_the_papers_options() -> None:
    """With them it is the paper's own network, whose tables are then flipped on the way in."""
    record = json.loads((FOLDER / "google.json").read_text(encoding="utf-8"))
    right, theirs = np.array(record["logits_expand_conv_max"]), made("google")
    own = coatref.spec("coatnet_0", **{key: value for key, value in recorded("google").made.items() if key != "name"})
    x = images(2, *theirs.image_size)
    for spec in (with_options(theirs), own):
        params = coatref.convert(variables(theirs), spec)
        assert difference(coatref.forward(params, x), right) <= FLOAT32
    assert difference(coatref.forward(coatref.convert(variables(theirs), theirs), x), right) > 0.1


@pytest.mark.parametrize("name", ["google", "tfmodels"])
def test_paths_of_objects(name: str) -> None:
    record = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    for variable, path in record["objects"].items():
        for found in (f"{path}/.ATTRIBUTES/VARIABLE_VALUE", f"behind/{path}/.ATTRIBUTES/VARIABLE_VALUE"):
            assert table.variable(found) == table.variable(variable)


def test_slots_of_objects() -> None:
    """Of the project's optimizer with moving averages, around Adam."""
    path, value = "backbone/_dense/kernel", "/.ATTRIBUTES/VARIABLE_VALUE"
    slots = {
        "/.OPTIMIZER_SLOT/optimizer/average": table.Variable("pre_logits/kernel", averaged=True),
        "/.OPTIMIZER_SLOT/optimizer/ema_base_optimizer/m": None,
        "/.OPTIMIZER_SLOT/optimizer/ema_base_optimizer/v": None,
    }
    for slot, found in slots.items():
        assert table.variable(f"{path}{slot}{value}") == found
    for other in ("global_step", "save_counter", "optimizer/_variables/7", "optimizer/ema_base_optimizer/iter"):
        assert table.variable(f"{other}{value}") is None


# --- a second formulation ---


@pytest.mark.parametrize("size, options", [((64, 96), False), ((37, 51), False), ((51, 37), True)])
def test_the_same_as_another_formulation(size: tuple[int, int], options: bool) -> None:
    spec = made("tfmodels").replace(image_size=size)
    spec = with_options(spec) if options else spec
    params = coatref.init(spec, 1, dtype="float64", scheme="distinct")
    x = np.random.default_rng(2).normal(size=(2, *size, 3))
    given = {"pool_type": "max", "downsample_loc": "expand_conv"} if options else {}
    assert difference(coatref.forward(params, x), second_logits(params, x, **given)) <= 1e-13


def test_the_same_with_a_run_without_stride() -> None:
    spec = made("google_mixed").replace(image_size=(64, 32))
    params = coatref.init(spec, 1, dtype="float64", scheme="distinct")
    x = np.random.default_rng(2).normal(size=(2, 64, 32, 3))
    assert difference(coatref.forward(params, x), second_logits(params, x, pool_stride=(2, 2, 2, 1, 2))) <= 1e-13


# --- out and in again ---


@st.composite
def drawn(draw: st.DrawFn) -> coatref.Spec:
    """A spec of theirs of any small size, with some of its choices changed to others that they have names for."""
    name = draw(st.sampled_from(["google/coatnet_0", "google/coatnet_5", "google/coatnet_6"]))
    head_size = coatref.spec(name).stages[-1][-1].attention.head_size  # type: ignore[union-attr]
    count = len(google_specs.MODELS[name.removeprefix("google/")].depths)
    heads = draw(st.lists(st.integers(1, 3), min_size=2, max_size=2))
    widths = draw(st.lists(st.integers(1, 9), min_size=count - 2, max_size=count - 2))
    spec = coatref.spec(
        name,
        image_size=draw(st.tuples(st.integers(1, 70), st.integers(1, 70))),
        classes=draw(st.integers(1, 9)),
        depths=draw(st.lists(st.integers(1, 2), min_size=count, max_size=count)),
        widths=(*widths, *(head_size * number for number in heads)),
    )
    spec = with_bias(
        spec,
        orientation=draw(st.sampled_from(["key_minus_query", "query_minus_key", "transposed"])),
        sharing=draw(st.sampled_from(["per_head", "across_heads"])),
    )
    spec = paper.with_attention(spec, qkv_bias=draw(st.booleans()), output_bias=draw(st.booleans()))
    if draw(st.booleans()):
        spec = with_runs(spec, lambda run: replace(run, squeeze_excite=None) if isinstance(run, MBConv) else run)
    norm, hidden = draw(st.sampled_from([spec.head.norm, None])), draw(st.sampled_from([spec.head.hidden, None]))
    return spec.replace(head=replace(spec.head, norm=norm, hidden=hidden))


@settings(max_examples=25, deadline=None)
@given(drawn(), st.sampled_from(table.DIALECT.layouts), st.sampled_from(["float32", "float64"]), st.integers(0, 99))
def test_import_of_an_export_gives_every_bit_back(spec: coatref.Spec, layout: str, dtype: str, seed: int) -> None:
    params = coatref.init(spec, seed, dtype=dtype, scheme="distinct")
    exported = export(params, "google", layout=layout)
    assert {name: array.shape for name, array in exported.items()} == table.expected(spec, layout)
    again = coatref.convert(exported, spec, dialect="google")
    assert again.spec == spec and list(again.flatten()) == list(params.flatten())
    for name, array in params.flatten().items():
        assert again.flatten()[name].dtype == array.dtype
        assert again.flatten()[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize(
    "orientation, turn",
    [
        ("key_minus_query", lambda t: t),
        ("query_minus_key", lambda t: t[:, ::-1, ::-1]),
        ("transposed", lambda t: t[:, ::-1, ::-1].transpose(0, 2, 1)),
    ],
)
def test_the_way_tables_are_stored(orientation: str, turn: Callable[[np.ndarray], np.ndarray]) -> None:
    spec, theirs = with_bias(made("tfmodels"), orientation=orientation), variables(made("tfmodels"))
    params = coatref.convert(theirs, spec)
    assert np.array_equal(params.flatten()[TABLE], turn(theirs["maxvit/block_02_00/attention/relative_bias"]))
    same = coatref.forward(coatref.convert(theirs, made("tfmodels")), images(2, 64, 96))
    assert difference(coatref.forward(params, images(2, 64, 96)), same) <= 1e-13


@pytest.mark.parametrize(
    "change, layer",
    [
        (lambda spec: spec.replace(stem=replace(spec.stem, after_last="norm_and_activation")), "norm2"),
        (lambda spec: with_bias(spec, kind="log_mlp", hidden=4), "attn.relative_bias.hidden"),
        (lambda spec: coatref.spec("timm/coatnext_nano_rw_224"), "convnext"),
        (lambda spec: coatref.spec("vit-rel"), "conv1"),
    ],
)
def test_layers_that_they_lack(change: Callable[[coatref.Spec], coatref.Spec], layer: str) -> None:
    with pytest.raises(coatref.InputError, match=f"has a layer '{layer}' for which .*google"):
        coatref.convert(variables(made("google")), change(made("google")), dialect="google")


# --- names that TensorFlow makes of them ---


def tensors(spec: coatref.Spec, wrap: Callable[[str], str], layout: str = "google") -> dict[str, np.ndarray]:
    return {wrap(name): value for name, value in variables(spec, layout).items()}


@pytest.mark.parametrize("layout", table.DIALECT.layouts)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"{name}:0",
        lambda name: f"teacher/{name}",
        lambda name: f"{name.partition('/')[0]}/{name}:0",  # Keras' .h5 files
        lambda name: name.removeprefix("maxvit/stem/").removeprefix("maxvit/cls_head/"),  # where a Sequential is eager
        lambda name: re.sub("^maxvit/block", "max_vi_t/block", re.sub("^dense/", "dense_3/", name)),
    ],
    ids=["output", "scope", "group", "eager", "renamed"],
)
def test_scopes(wrap: Callable[[str], str], layout: str) -> None:
    spec = made("google")
    params = coatref.convert(tensors(spec, wrap, layout), spec)
    right = coatref.convert(variables(spec, layout), spec).flatten()
    assert all(np.array_equal(array, right[name]) for name, array in params.flatten().items())


# How a variable's name ends or begins in what optimizers keep of it: TensorFlow 1's, Keras' old and new ones.
SLOTS = ["{}/Adam", "{}/Adam_1", "{}/Momentum", "{}/RMSProp_1", "Adam/m/{}", "training/SGD/{}/momentum", "AdamW_2/{}"]


def test_what_only_training_has_is_left() -> None:
    spec = made("google")
    extra = {slot.format(name): value for name, value in variables(spec).items() for slot in SLOTS}
    extra |= {name: np.array(1.0) for name in ("global_step", "beta1_power", "beta2_power", "iteration:0")}
    params = coatref.convert(variables(spec) | extra, spec)
    right = coatref.convert(variables(spec), spec).flatten()
    assert all(np.array_equal(array, right[name]) for name, array in params.flatten().items())


@pytest.mark.parametrize("ema", [True, False])
def test_moving_averages(ema: bool) -> None:
    spec = made("google")
    trained = variables(spec)
    averages = {f"{name}/ExponentialMovingAverage": 2 * value for name, value in trained.items()}
    without = {name for name in averages if "moving_" in name}  # of trained variables alone
    found = coatref.convert(
        trained | {name: value for name, value in averages.items() if name not in without}, spec, ema=ema
    )
    right = coatref.convert(trained, spec).flatten()
    for name, array in found.flatten().items():
        factor = 2 if ema and not name.endswith((".mean", ".var")) else 1
        assert np.array_equal(array, factor * right[name]), name
    only = coatref.convert(averages, spec).flatten()
    assert all(np.array_equal(array, 2 * right[name]) for name, array in only.items())
    if not ema:
        with pytest.raises(coatref.WeightsError, match="missing: maxvit/stem/conv_0/kernel"):
            coatref.convert(averages, spec, ema=False)


def test_names_that_do_not_fit_are_refused() -> None:
    spec = made("google")
    right = variables(spec)
    one = "maxvit/block_02_00/attention/q/weight"
    lacking = {name: value for name, value in right.items() if name != one}
    with pytest.raises(coatref.WeightsError, match=rf"missing: {one} \(40, 2, 32\)"):
        coatref.convert(lacking, spec)
    with pytest.raises(coatref.WeightsError, match="surplus: maxvit/block_02_00/attention/query/weight"):
        coatref.convert(lacking | {one.replace("/q/", "/query/"): right[one]}, spec)
    with pytest.raises(coatref.WeightsError, match="surplus: maxvit/mbconv/kernel"):  # and not left for its scope
        coatref.convert(right | {"maxvit/mbconv/kernel": right[one]}, spec)
    with pytest.raises(coatref.InputError, match=f"are the same tensor, {one}"):
        coatref.convert(right | {f"other/{one}": right[one]}, spec)
    with pytest.raises(coatref.InputError, match=r"names of Google's maxvit code, depths \(2, 2, 1, 2, 1\), widths"):
        coatref.convert(lacking)


@pytest.mark.parametrize("layout", table.DIALECT.layouts)
@pytest.mark.parametrize("name", ["google/coatnet_0", "google/coatnet_3", "google/coatnet_5", "google/coatnet_7"])
def test_the_network_is_recognised(name: str, layout: str) -> None:
    spec = coatref.spec(name, image_size=(192, 320), classes=11)
    shapes = table.expected(spec, layout)
    found = recognised({key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()})
    assert (found.spec, found.layout) == (spec, layout)


@pytest.mark.parametrize("name", LAYOUT)
def test_a_network_of_other_depths_and_widths_is_recognised(name: str) -> None:
    found = coatref.convert(variables(made(name), LAYOUT[name])).spec
    assert found.replace(image_size=made(name).image_size) == made(name)  # tables tell the grid: 37 pixels, or 48


def test_sizes_are_measured() -> None:
    for name, layout in LAYOUT.items():
        found, arguments = table.sizes(table.expected(made(name), layout)), recorded(name).made
        assert found is not None
        assert (*found.depths, *found.widths, found.classes) == (  # type: ignore[misc]
            *arguments["depths"],
            *arguments["widths"],
            arguments["classes"],
        )


# --- checkpoints ---


def real_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """The files of a checkpoint that TensorFlow wrote, in a folder; and what it holds."""
    record = json.loads((FOLDER / "tensorflow_checkpoint.json").read_text(encoding="utf-8"))
    for name, content in record["files"].items():
        (folder / name).write_bytes(base64.b64decode(content))
    return {
        name: np.array(values, "float32" if dtype == "bfloat16" else dtype).reshape(shape)
        for name, (dtype, shape, values) in record["tensors"].items()
    }


@pytest.mark.parametrize("ending", ["", ".index"])
def test_a_checkpoint_of_tensorflow(tmp_path: Path, ending: str) -> None:
    """Of every type, in two files, one of them with texts behind the last tensor."""
    right = real_checkpoint(tmp_path)
    found = read_all(tmp_path / f"model.ckpt-7{ending}")
    assert found.keys() == right.keys()
    for name, array in right.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("layout", table.DIALECT.layouts)
def test_loading_a_checkpoint(tmp_path: Path, layout: str) -> None:
    spec = made("google")
    arrays = {name: value.astype("float32") for name, value in variables(spec, layout).items()}
    arrays |= {f"{name}/ExponentialMovingAverage": 2 * value for name, value in arrays.items()}
    arrays |= {f"{name}/Adam": value for name, value in variables(spec, layout).items()}  # in float64
    bundle.write(tmp_path / "model.ckpt-3", arrays | {"global_step": np.array(3)})
    right = coatref.convert(variables(spec, layout), spec, dtype="float32").flatten()
    for path, ema in (("model.ckpt-3", True), ("model.ckpt-3.index", False)):
        params = coatref.load(tmp_path / path, spec, ema=ema)
        for name, array in params.flatten().items():
            assert array.dtype == np.float32 and np.array_equal(array, (1 + ema) * right[name]), name


FLOATS = {"a": np.ones((2, 3), "float32"), "b": np.zeros(4, "float64")}


def entries(**changes: Any) -> list[bundle.Row]:
    """The rows of an index for a file of 24 bytes, with something about its one tensor changed."""
    one: dict[str, Any] = {"dtype": 1, "shape": (2, 3), "shard": 0, "start": 0, "size": 24} | changes
    return [(b"", bundle.header(1)), (b"a", bundle.entry(**one))]


INDEXES: dict[str, tuple[Callable[[], bytes], str]] = {
    "no table": (lambda: bytes(100), "do not end as one does"),
    "nothing": (lambda: b"", "0 bytes do not end"),
    "no header": (lambda: bundle.table([entries()[1:]]), "does not begin with the number of files"),
    "no rows": (lambda: bundle.table([[]]), "does not begin"),
    "many files": (lambda: bundle.table([[(b"", bundle.header(10**6))]]), "1000000 files of data"),
    "no files": (lambda: bundle.table([[(b"", bundle.header(0))]]), "0 files of data"),
    "big-endian": (lambda: bundle.table([[(b"", bundle.header(1, 1))]]), "big-endian"),
    "unknown type": (lambda: bundle.table([entries(dtype=8, size=48)]), "type number 8"),
    "shape and size": (lambda: bundle.table([entries(shape=(2, 4))]), "takes 32 bytes and has 24"),
    "negative side": (lambda: bundle.table([entries(shape=(-1, 3))]), "no shape"),
    "enormous": (lambda: bundle.table([entries(shape=(2**40, 2**40), size=2**63)]), "no shape"),
    "many axes": (lambda: bundle.table([entries(shape=(1,) * 9, size=4)]), "9 axes"),
    "another file": (lambda: bundle.table([entries(shard=1)]), "in file 1 of 1"),
    "behind the end": (lambda: bundle.table([entries(start=1)]), "from 1 to 25"),
    "overlapping": (
        lambda: bundle.table([[*entries(), (b"b", bundle.entry(1, (1,), 0, 20, 4))]]),
        "behind one that ends at 24",
    ),
    "slices": (
        lambda: bundle.table([[entries()[0], (b"a", bundle.entry(1, (2, 3), 0, 0, 24) + bundle.field(7, b""))]]),
        "in slices",
    ),
    "shape a number": (
        lambda: bundle.table([[entries()[0], (b"a", bundle.field(1, 1) + bundle.field(2, 3))]]),
        "no message",
    ),
    "type a message": (lambda: bundle.table([[entries()[0], (b"a", bundle.field(1, b"x"))]]), "no number"),
    "binary key": (lambda: bundle.table([[entries()[0], (b"\xff", entries()[1][1])]]), "no text"),
    "repeated key": (lambda: bundle.table([[*entries(), entries()[1]]]), "not in order"),
    "repeated block": (
        lambda: bundle.table([entries()], [bundle.varint(0) + bundle.varint(len(bundle.block(entries())) - 5)] * 2),
        "is not in order",
    ),
    "long key": (lambda: bundle.table([[entries()[0], (b"a" * 1001, entries()[1][1])]]), "longer than it can be"),
    "long value": (lambda: bundle.table([[(b"", bytes(10_001))]]), "longer than it can be"),
    "many entries": (
        lambda: bundle.table([[entries()[0], *((b"%06d" % n, bundle.field(1, 7)) for n in range(10_001))]]),
        "more than 10000 entries",
    ),
    "block outside": (lambda: bundle.table([entries()], [b"\xff\x7f\x10"]), "no room"),
    "endless number": (lambda: bundle.table([entries()], [b"\xff" * 12]), "does not end"),
    "odd field": (lambda: bundle.table([[(b"", b"\x0b")]]), "of no known kind"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_hostile_indexes_are_refused(tmp_path: Path, name: str) -> None:
    made_of, message = INDEXES[name]
    (tmp_path / "m.index").write_bytes(made_of())
    (tmp_path / "m.data-00000-of-00001").write_bytes(bytes(24))
    for limit in (time_limit(SECONDS), memory_limit(MEGABYTES)):  # one after the other: counting memory takes time
        with limit, pytest.raises(FileFormatError, match=message) as caught:
            read_all(tmp_path / "m.index")
    assert str(tmp_path) in str(caught.value) and str(caught.value).endswith(".")


def test_packed_blocks_are_refused(tmp_path: Path) -> None:
    content = bytearray(bundle.table([entries()]))
    content[len(bundle.block(entries())) - 5] = 1  # snappy
    (tmp_path / "m.index").write_bytes(content)
    refused(functools.partial(read_all, tmp_path / "m"), FileFormatError, str(tmp_path / "m.index"), "packed")


def test_a_long_index_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "m.index").open("wb") as file:
        file.truncate(10**10)  # a hole
    with memory_limit(MEGABYTES):
        refused(functools.partial(read_all, tmp_path / "m.index"), FileFormatError, "10000000000 bytes", "allowed")


def test_a_missing_file_of_data(tmp_path: Path) -> None:
    bundle.write(tmp_path / "m", FLOATS)
    (tmp_path / "m.data-00000-of-00001").unlink()
    with pytest.raises(FileNotFoundError, match=r"m\.data-00000-of-00001, of whose tensors .*m\.index tells"):
        read_all(tmp_path / "m.index")


def test_our_writer_writes_what_is_read(tmp_path: Path) -> None:
    bundle.write(tmp_path / "m", FLOATS)
    assert all(np.array_equal(array, FLOATS[name]) for name, array in read_all(tmp_path / "m.index").items())
    assert list(read_all(tmp_path / "m")) == list(FLOATS)


@settings(QUICK, max_examples=80)
@given(damage=damages())
def test_damaged_indexes(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    real_checkpoint(tmp_path)
    index = tmp_path / "model.ckpt-7.index"
    index.write_bytes(damage(index.read_bytes()))
    try:
        read_or_refused(index)
    except FileNotFoundError as error:  # the number of files may be what is damaged
        assert ".data-" in str(error)


# --- the judge ---


def adapter(params: coatref.Params, x: np.ndarray) -> np.ndarray:
    """An implementation in their conventions, of any depths, widths and size."""
    return second_logits(params, x)


def small() -> coatref.Spec:
    """A network that is judged in seconds; its image is not square."""
    return coatref.spec("google/coatnet_0", image_size=(32, 48), classes=3, depths=(1,) * 5, widths=(4, 6, 8, 32, 32))


def test_the_judge_takes_such_an_implementation_under_its_own_claim() -> None:
    report = check(adapter, spec=small(), level="quick")
    assert report.conforms, report.summary


@pytest.mark.deep
@pytest.mark.parametrize("orientation", ["key_minus_query", "query_minus_key"])
def test_the_judge_tells_tables_that_are_not_flipped(orientation: str) -> None:
    """Also under the paper's claim: then it is an implementation that was handed our tables as theirs."""

    def unflipped(params: coatref.Params, x: np.ndarray) -> np.ndarray:
        turned = {
            name: np.flip(array, (1, 2)) if name.endswith(".table") else array
            for name, array in params.flatten().items()
        }
        return second_logits(coatref.convert(turned, params.spec), x)

    spec = with_bias(small(), orientation=orientation)
    assert check(adapter, spec=spec, level="quick").conforms
    report = check(unflipped, spec=spec, level="quick")
    assert not report.conforms and "flipped" in report.summary, report.summary


# --- the code itself ---


@pytest.mark.tensorflow
@pytest.mark.parametrize("options", [False, True])
def test_the_blocks_of_tensorflow_models(tmp_path: Path, options: bool) -> None:
    google_tf.require_tensorflow()
    spec = with_options(made("tfmodels")) if options else made("tfmodels")
    given = {"pool_type": "2d:max", "downsample_loc": "expand_conv"} if options else {}
    params = coatref.init(spec, 4, scheme="distinct")
    x = np.random.default_rng(3).normal(size=(3, *spec.image_size, 3)).astype("float32")
    values = export(params, "google", layout="tfmodels")
    logits = google_tf.run(tmp_path, google_tf.request(spec, **given), values, x)
    assert difference(coatref.forward(params, x), logits) <= FLOAT32
    with np.load(tmp_path / "variables.npz") as stored:
        shapes = {name: stored[name].shape for name in stored.files}
        again = coatref.convert(dict(stored), spec)
    assert shapes == recorded("tfmodels").shapes
    raw, averaged = (coatref.load(tmp_path / "model.ckpt-1.index", spec, ema=ema) for ema in (False, True))
    for name, array in flatten(params):
        assert np.array_equal(again.flatten()[name], array)
        assert np.array_equal(raw.flatten()[name], array)
        assert np.array_equal(averaged.flatten()[name], 2 * array), name


@pytest.mark.tensorflow
def test_what_is_recorded_of_tensorflow_models(tmp_path: Path) -> None:
    google_tf.require_tensorflow()
    spec, record = made("tfmodels"), recorded("tfmodels")
    values = {name: value.astype("float32") for name, value in variables(spec, "tfmodels").items()}
    x = images(len(record.logits), *spec.image_size).astype("float32")
    assert difference(google_tf.run(tmp_path, google_tf.request(spec), values, x), record.logits) <= FLOAT32
