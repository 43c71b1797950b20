"""Checkpoints from a hub: every model of timm's CoAtNet family in the hub's own layout, served on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import numpy as np
import pytest
from timm_import import require_timm
from timm_models import images, log_coordinates, randomised

import coatref
from coatref.conformance.targets.timm import arguments
from coatref.specification import timm as timm_specs

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")

pytestmark = [  # torch's remarks on how timm's resize calls it
    pytest.mark.filterwarnings(r"ignore:torch\.searchsorted\(\). input value tensor is non-contiguous"),
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing"),
]

NAMES = timm_specs.names()
TABLES = [name for name in NAMES if "rmlp" not in name]


@pytest.fixture(scope="module")
def timm() -> Any:
    return require_timm()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    with hub_server.running(tmp_path / "hub") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running
    for folder in tmp_path.iterdir():  # 40 GB in all at full size
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, Any]:
    return {"cache_dir": tmp_path / "cache"}


def small(name: str, size: int) -> coatref.Spec:
    """A timm spec with few channels and blocks, no two alike."""
    first = coatref.spec(name).stages[2]
    depths = (1, 2, 2, 2) if len(first) > 1 else (1, 1, 2, 1)  # mixed stages need a block of each kind
    factor = coatref.spec(name).stem.width  # ConvNeXt takes multiples of its input width only
    widths = (factor, 2 * factor, 4 * factor, 8 * factor) if "next" in name else (32, 64, 96, 128)
    return coatref.spec(name, image_size=size, classes=7, depths=depths, widths=widths)


def published(timm: Any, hub: hub_server.Hub, model: Any, repository: str) -> None:
    """A model on the hub, as timm itself saves it for one."""
    timm.models.save_for_hf(model, hub.root / repository / "main", safe_serialization=True)


def logits(model: Any, x: Any) -> np.ndarray:
    """A timm model's output."""
    import torch

    with torch.no_grad():
        found: np.ndarray = model(x).numpy()
    return found


def assert_same(ours: Any, theirs: np.ndarray) -> None:
    """Equal to 1e-11 of the largest value, in float64."""
    assert ours.shape == theirs.shape
    assert np.max(np.abs(ours - theirs)) <= 1e-11 * np.max(np.abs(theirs))


def compare(
    timm: Any, hub: hub_server.Hub, cache: dict[str, Any], spec: coatref.Spec, larger: int, options: dict[str, Any]
) -> None:
    """A model from the hub: recognised without being told, with timm's logits; the same at another image size."""
    name = spec.name.removeprefix("timm/")
    model = randomised(timm, name, 5, **options)
    repository = f"timm/{name}.random"
    model.pretrained_cfg["input_size"] = (3, *spec.image_size)
    published(timm, hub, model, repository)
    x = images(6, 1, spec.channels, *spec.image_size)
    theirs = logits(model, x)
    params = coatref.load(f"hf-hub:{repository}", **cache)
    assert params.spec == spec
    assert_same(coatref.forward(params, x.permute(0, 2, 3, 1).numpy()), theirs)
    del params

    wide = timm.create_model(name, pretrained=False, **options | {"img_size": larger}).double().eval()
    wide.load_state_dict(timm.models.maxxvit.checkpoint_filter_fn(model.state_dict(), wide), strict=True)
    del model
    for module in wide.modules():
        if hasattr(module, "rel_coords_log"):
            module.rel_coords_log.copy_(log_coordinates(*module.window_size))
    x = images(7, 1, spec.channels, larger, larger)
    theirs = logits(wide, x)
    del wide
    resized = coatref.load(f"hf-hub:{repository}", image_size=larger, resize="timm", **cache)
    assert resized.spec == spec.replace(image_size=(larger, larger))
    assert_same(coatref.forward(resized, x.permute(0, 2, 3, 1).numpy()), theirs)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_of_the_family(timm: Any, hub: hub_server.Hub, cache: dict[str, Any], name: str) -> None:
    """All of their conventions in few channels and blocks, on small images."""
    spec = small(name, 64)
    compare(timm, hub, cache, spec, 96, arguments(name.removeprefix("timm/"), coatref.spec(name), spec))


@pytest.mark.deep
@pytest.mark.parametrize("name", NAMES)
def test_every_model_at_full_size(timm: Any, hub: hub_server.Hub, cache: dict[str, Any], name: str) -> None:
    compare(timm, hub, cache, coatref.spec(name, image_size=224), 288, {"img_size": 224})


def test_the_transform_is_the_checkpoints_own(timm: Any, hub: hub_server.Hub, cache: dict[str, Any]) -> None:
    spec = small("timm/coatnet_0_rw_224", 64)
    model = randomised(timm, "coatnet_0_rw_224", 5, **arguments("coatnet_0_rw_224", coatref.spec(spec.name), spec))
    model.pretrained_cfg |= {
        "input_size": (3, 64, 64),
        "crop_pct": 0.8,
        "mean": (0.1, 0.2, 0.3),
        "interpolation": "bilinear",
    }
    published(timm, hub, model, "me/mine")
    found = coatref.load("hf-hub:me/mine", **cache).spec
    assert found.preprocessing == coatref.Preprocessing(
        crop_fraction=0.8, interpolation="bilinear", mean=(0.1, 0.2, 0.3), std=spec.preprocessing.std
    )
    assert found.replace(preprocessing=spec.preprocessing) == spec


def saved(tmp_path: Path, spec: coatref.Spec) -> tuple[coatref.Params, bytes]:
    """Parameters, and a safetensors file of them under timm's names."""
    from safetensors.numpy import save

    params = coatref.init(spec, 3, scheme="distinct")
    return params, save(coatref.export(params, "timm"))


def test_a_revision_a_token_and_what_is_cached(
    tmp_path: Path, hub: hub_server.Hub, cache: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small("timm/coatnet_0_rw_224", 64)
    params, content = saved(tmp_path, spec)
    hub.add("me/mine", "model.safetensors", content, revision="v2")
    (hub.root / "me/mine/main").mkdir()
    with pytest.raises(coatref.InputError, match="me/mine has none of model.safetensors"):
        coatref.load("hf-hub:me/mine", spec, **cache)
    hub.asked.clear()
    for source, revision in (("hf-hub:me/mine@v2", None), ("hf-hub:me/mine", "v2")):
        found = coatref.load(source, spec, token="hf_secret", revision=revision, **cache)
        assert np.array_equal(found["head"]["classifier"]["w"], params["head"]["classifier"]["w"])
    files = [entry for entry in hub.asked if "/resolve/" in entry[1]]
    assert {entry[2] for entry in files} == {"Bearer hf_secret"}
    assert [entry[1] for entry in files].count("me/mine/resolve/v2/model.safetensors") == 3  # HEAD and GET, then HEAD
    hub.asked.clear()
    coatref.load("hf-hub:me/mine@v2", spec, local_files_only=True, **cache)
    assert hub.asked == []
    with pytest.raises(coatref.InputError, match="offline none in the cache"):
        coatref.load("hf-hub:me/other", spec, local_files_only=True, **cache)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf-hub:me/none", "The hub has no repository me/none, or none that is open to this account"),
        ("hf-hub:me/mine@v9", "The repository me/mine has no revision 'v9'"),
        ("hf-hub:", "names no repository"),
        ("hf-hub:../../etc", "names no repository"),
        ("hf-hub:../etc", "names no repository"),
        ("hf-hub:a/b/c", "names no repository"),
        ("hf-hub:me/mine@v2", "names a revision, and revision='v3' another"),
    ],
)
def test_what_the_hub_does_not_have(hub: hub_server.Hub, cache: dict[str, Any], source: str, message: str) -> None:
    hub.add("me/mine", "config.json", b"{}")
    options: dict[str, Any] = {"revision": "v3"} if message.endswith("another") else {}
    with pytest.raises(coatref.InputError, match=message):
        coatref.load(source, **options, **cache)


def test_a_checkpoint_in_shards(tmp_path: Path, hub: hub_server.Hub, cache: dict[str, Any]) -> None:
    from safetensors.numpy import save

    params = coatref.init(small("timm/coatnet_0_rw_224", 64), 3, scheme="distinct")
    tensors = coatref.export(params, "timm")
    names = {name: f"model-{index % 2 + 1:05d}-of-00002.safetensors" for index, name in enumerate(tensors)}
    for file in sorted(set(names.values())):
        hub.add("me/large", file, save({name: tensors[name] for name in names if names[name] == file}))
    index = {"metadata": {"total_size": sum(array.nbytes for array in tensors.values())}, "weight_map": names}
    hub.add("me/large", "model.safetensors.index.json", json.dumps(index).encode())
    found = coatref.load("hf-hub:me/large", params.spec, **cache)
    assert all(np.array_equal(array, params.flatten()[name]) for name, array in found.flatten().items())
    (hub.root / "me/large/main/model-00002-of-00002.safetensors").unlink()
    with pytest.raises(coatref.WeightsError, match="lists the file model-00002-of-00002.safetensors, which the repos"):
        coatref.load("hf-hub:me/large", params.spec, cache_dir=tmp_path / "other")
    for hostile in ("../secret.safetensors", "/etc/passwd", "a/b.safetensors", "", 5):
        hub.add("me/bad", "model.safetensors.index.json", json.dumps({"weight_map": {"a": hostile}}).encode())
        hub.asked.clear()
        with pytest.raises(coatref.FileFormatError, match="lists no files"):
            coatref.load("hf-hub:me/bad", params.spec, **cache)
        assert not any("secret" in path or "passwd" in path for _, path, _ in hub.asked)


def test_the_endpoint_is_that_of_the_environment(tmp_path: Path, hub: hub_server.Hub) -> None:
    """In a fresh process, by the environment alone, as a mirror is set."""
    _, content = saved(tmp_path, small("timm/coatnet_0_rw_224", 64))
    hub.add("me/mine", "model.safetensors", content)
    program = "from coatref.weights.sources import located; print(located('hf-hub:me/mine').path)"

    def printed(**changes: str) -> str:
        """What the program prints."""
        environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")} | changes
        command = [sys.executable, "-c", program]
        return subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=60
        ).stdout.strip()

    first = printed()
    assert Path(first).read_bytes() == content and str(tmp_path / "home") in first
    assert printed(HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9") == first


def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*arguments: Any, **options: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(OSError, match="cannot be reached for config.json of me/mine"):
        coatref.load("hf-hub:me/mine")


def test_a_folder_of_the_hubs_layout(timm: Any, tmp_path: Path) -> None:
    spec = small("timm/coatnet_rmlp_2_rw_384", 64)
    sizes = arguments("coatnet_rmlp_2_rw_384", coatref.spec(spec.name), spec)
    model = randomised(timm, "coatnet_rmlp_2_rw_384", 5, **sizes)
    model.pretrained_cfg["input_size"] = (3, 64, 64)
    timm.models.save_for_hf(model, tmp_path, safe_serialization="both")
    assert coatref.load(tmp_path).spec == coatref.load(tmp_path / "pytorch_model.bin").spec == spec
    (tmp_path / "config.json").write_text('{"architecture": NaN')
    with pytest.raises(coatref.FileFormatError, match="config.json cannot be used: it is not the JSON"):
        coatref.load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(coatref.InputError, match=r"specs have exactly these names and shapes: .*; pass spec="):
        coatref.load(tmp_path)
