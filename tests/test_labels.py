"""What a checkpoint's config.json says of its classes and its images, and timm's tables of classes."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any

import numpy as np
import pytest
from timm_import import require_timm

import coatref
from coatref import Preprocessing, errors, labels
from coatref.images import photograph, preprocess_images
from coatref.labels import class_names
from coatref.specification.preprocessing import preprocessing_of

THREE = ["n01", "n02", "n03"]
WORDS = {"n01": "tench, Tinca tinca", "n03": "\x1b[31mhen"}


@pytest.mark.parametrize("inside", [False, True], ids=["at the top", "in pretrained_cfg"])
@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"label_names": THREE}, THREE),
        ({"label_names": THREE, "label_descriptions": WORDS}, ["tench, Tinca tinca", "n02", "\x1b[31mhen"]),
        ({"label_names": THREE, "label_descriptions": None}, THREE),
        ({"label_names": {"2": "c", "0": "a"}}, ["a", "1", "c"]),
        ({"label_names": {"0": "n01"}, "label_descriptions": WORDS}, ["tench, Tinca tinca", "1", "2"]),
        ({"label_names": ["same", "same", "x" * 1000]}, ["same", "same", "x" * 1000]),
    ],
)
def test_names_of_a_config(stated: dict[str, Any], expected: list[str], inside: bool) -> None:
    config = json.loads(json.dumps({"pretrained_cfg": stated} if inside else {"pretrained_cfg": {}, **stated}))
    assert class_names(3, config) == expected


def test_names_at_the_top_come_first() -> None:
    config = {"label_names": THREE, "pretrained_cfg": {"label_names": ["x", "y", "z"], "label_descriptions": WORDS}}
    assert class_names(3, config) == ["tench, Tinca tinca", "n02", "\x1b[31mhen"]


DEEP: Any = []
for _ in range(500):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "stated",
    [
        {"label_names": THREE[:2]},
        {"label_names": [*THREE, "n04"]},
        {"label_names": []},
        {"label_names": {}, "label_descriptions": 3},
        {"label_names": "abc"},
        {"label_names": 3},
        {"label_names": True},
        {"label_names": ["a", "b", 3]},
        {"label_names": ["a", "b", None]},
        {"label_names": ["a", "b", ["c"]]},
        {"label_names": ["a", "b", ""]},
        {"label_names": ["a", "b", "x" * 1001]},
        {"label_names": ["a", "b", "x" * 10**7]},
        {"label_names": ["a", "b", DEEP]},
        {"label_names": ["a", "b", ["c"]], "label_descriptions": {"a": "A"}},
        {"label_names": DEEP},
        {"label_names": {"0": "a", "3": "d"}},
        {"label_names": {"-1": "a"}},
        {"label_names": {"01": "a"}},
        {"label_names": {"0": ["a"]}},
        {"label_names": THREE, "label_descriptions": ["a", "b", "c"]},
        {"label_names": THREE, "label_descriptions": {"n01": 3}},
        {"label_names": THREE, "label_descriptions": {"n01": ""}},
        {"label_names": THREE, "label_descriptions": {"n01": DEEP}},
    ],
    ids=lambda stated: repr(stated)[:60],
)
def test_names_that_are_none_are_refused(stated: dict[str, Any]) -> None:
    for config in (stated, {"pretrained_cfg": stated}):
        with pytest.raises(errors.FileFormatError, match="config") as caught:
            class_names(3, config)
        assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [None, {}, {"pretrained_cfg": None}, {"pretrained_cfg": 3}, {"label_names": None}])
def test_without_names_there_are_none(config: Any) -> None:
    assert class_names(3, config) is None


def test_timms_tables_are_those_of_timm() -> None:
    timm = require_timm()
    for classes in range(1, 22000):
        subset = timm.data.infer_imagenet_subset({"num_classes": classes})
        assert (subset is None) == (classes not in labels.TABLES)
        if subset is not None:
            assert class_names(classes, {}) == timm.data.ImageNetInfo(subset).label_descriptions()


def test_the_config_comes_before_timms_tables() -> None:
    require_timm()
    assert class_names(1000, None) is not None
    assert class_names(1000, {"label_names": [f"mine {n}" for n in range(1000)]}) == [f"mine {n}" for n in range(1000)]
    assert class_names(1001, None) is None


def test_timms_tables_are_read_without_importing_it() -> None:
    if importlib.util.find_spec("timm") is None:
        pytest.skip("needs timm, which is not installed (pip install timm)")
    import subprocess

    code = "import sys, coatref.labels as l; print(len(l.class_names(1000, None)), 'timm' in sys.modules, 'torch' in sys.modules)"
    safe_path = ["-P"] if sys.flags.safe_path else []
    run = subprocess.run([sys.executable, *safe_path, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1000", "False", "False"]


def test_without_timm_or_its_tables_there_are_no_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(labels, "timm_tables", lambda: tmp_path)
    assert class_names(1000, None) is None
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "timm", None)
    assert class_names(1000, None) is None


# ------------------------------------------------------------------------------------------------ the evaluation transform


def test_every_published_config_gives_timms_transform() -> None:
    timm = require_timm()
    names = [name for name in timm.list_pretrained() if name.startswith(("coatnet", "coatnext"))]
    assert len(names) >= 8
    for name in names:
        settings = json.loads(json.dumps(timm.get_pretrained_cfg(name).to_dict(), default=str))
        resolved = timm.data.resolve_data_config({}, pretrained_cfg=settings)
        theirs = timm.data.create_transform(**resolved)(photograph()).permute(1, 2, 0).numpy()
        for config in ({"architecture": name, "pretrained_cfg": settings}, settings):
            found = preprocessing_of(config)
            assert found is not None and found == coatref.spec(f"timm/{name.partition('.')[0]}").preprocessing
            ours = preprocess_images(photograph(), found, *resolved["input_size"][1:])
            np.testing.assert_array_equal(ours[0], theirs, err_msg=name)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"crop_pct": 0.9}, Preprocessing(0.9)),
        ({"crop_pct": None, "crop_mode": "squash"}, Preprocessing(crop="squash")),
        ({"interpolation": "bilinear", "input_size": [3, 96, 64]}, Preprocessing(interpolation="bilinear")),
        ({"mean": [0.1, 0.2, 0.3]}, Preprocessing(mean=(0.1, 0.2, 0.3))),
        ({"mean": [0.1], "std": [0.2], "input_size": [1, 8, 8]}, Preprocessing(mean=(0.1,), std=(0.2,))),
        ({"mean": [0.1], "std": [0.2], "input_size": [3, 8, 8]}, Preprocessing(mean=(0.1,) * 3, std=(0.2,) * 3)),
        ({"test_crop_pct": 1.0, "test_input_size": [3, 9, 9], "crop_pct": 0.8}, Preprocessing(0.8)),
    ],
)
def test_what_a_config_leaves_out_is_timms_default(settings: dict[str, Any], expected: Preprocessing) -> None:
    assert preprocessing_of({"architecture": "coatnet_0", "pretrained_cfg": settings}) == expected


def test_timms_defaults_are_ours() -> None:
    timm = require_timm()
    resolved = timm.data.resolve_data_config({}, pretrained_cfg={"architecture": "x"})
    names = ("crop_pct", "crop_mode", "interpolation", "mean", "std")
    assert preprocessing_of({name: resolved[name] for name in names}) == Preprocessing()


@pytest.mark.parametrize(
    "config", [{}, {"architecture": "x"}, {"pretrained_cfg": {}}, {"pretrained_cfg": {"mean": None}}]
)
def test_a_config_may_say_nothing_of_it(config: dict[str, Any]) -> None:
    assert preprocessing_of(config) is None


@pytest.mark.parametrize(
    "settings",
    [
        3,
        None,
        ["crop_pct"],
        {"crop_pct": 0},
        {"crop_pct": float("nan")},
        {"crop_pct": "0.9"},
        {"crop_pct": DEEP},
        {"crop_mode": "border"},  # timm's third, which no CoAtNet uses
        {"crop_mode": "square"},  # ours, not timm's
        {"interpolation": "random"},
        {"interpolation": ["bicubic"]},
        {"mean": [0.1, 0.2]},
        {"mean": "0.1"},
        {"mean": DEEP},
        {"mean": [[0.5]], "input_size": [3, 8, 8]},
        {"mean": [0.5]},  # of one channel, with the three of timm's default std
        {"std": [0, 0, 0]},
        {"std": [1e400, 1, 1]},
        {"std": [0.1] * 10**6},
    ],
    ids=lambda settings: repr(settings)[:60],
)
def test_a_transform_that_is_none_is_refused(settings: Any) -> None:
    with pytest.raises(errors.FileFormatError, match="config") as caught:
        preprocessing_of({"pretrained_cfg": settings})
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
