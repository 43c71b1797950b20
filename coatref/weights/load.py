"""From a checkpoint, wherever it is, to parameters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from coatref.errors import CoatrefError, InputError, SpecError
from coatref.params import Params
from coatref.registry import resolve_dtype, resolve_library
from coatref.specification.catalogue import resolve, specs
from coatref.specification.preprocessing import preprocessing_of
from coatref.specification.spec import Spec
from coatref.weights.convert import converted, refuse_odd_entries, refuse_unknown_dialect
from coatref.weights.files import open_file
from coatref.weights.own_file import spec_of
from coatref.weights.recognise import Reading, reading_as, recognised
from coatref.weights.resize import Resize, refuse_unknown_method, size_of
from coatref.weights.sources import located


def load(
    source: str | os.PathLike[str],
    spec: Spec | str | None = None,
    *,
    dialect: str | None = None,
    image_size: tuple[int, int] | int | None = None,
    resize: Resize = "paper",
    ema: bool = True,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    xp: Any = "numpy",
    dtype: Any = None,
    device: Any = None,
    allow_non_finite: bool = False,
) -> Params:
    """Parameters from a checkpoint: a file of our own, or one of any dialect that is known.

        params = coatref.load("hf-hub:timm/coatnet_0_rw_224.sw_in1k")
        params = coatref.load("coatnet0_224_imagenet.h5")

    Nothing in a file is run, and nothing that it says is believed before it has been checked.

    Args:
        source: a file: `.safetensors` (one, or the `.safetensors.index.json` of several), `.h5`, `.weights.h5` or `.keras`,
            `.npz`, `.onnx` (its initialisers), `.pth`, `.pt` or `.bin` (which only torch's weights-only loading reads), or
            the `.index` of a TensorFlow checkpoint; a folder with one of the hub's usual files; or a repository of the
            Hugging Face hub, "hf-hub:OWNER/NAME" or "hf-hub:OWNER/NAME@REVISION".
        spec: what the checkpoint is. None: what the file says itself; else the spec that timm's config.json beside it
            names, where the tensors fit it; else the one named spec that has exactly these names and shapes.
        dialect, image_size, resize, ema, xp, dtype, device, allow_non_finite: as in `convert`; `ema` also of torch files
            with two copies.
        revision, cache_dir, token, local_files_only: as in huggingface_hub's `hf_hub_download`; its environment variables
            (HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE) count too.

    Returns:
        The parameters. A checkpoint of timm's has the preprocessing that its config.json tells, without one that of its
        named spec.

    Raises:
        InputError: the ending is not known, there is no such repository, or no spec is given and none fits or several do;
            and as in `convert`.
        FileNotFoundError, FileFormatError: there is no such file, or it is truncated, corrupt or hostile.
        OSError: it cannot be read, or the hub cannot be reached.
        SpecError: the file carries another spec than the one given.
        WeightsError: the tensors do not fit the spec, or are not finite.
        MissingDependencyError: reading it needs a package that is not installed; the message has the command for it.
    """
    library = resolve_library(xp)
    wanted = None if dtype is None else resolve_dtype(library, dtype)
    refuse_unknown_dialect(dialect)
    refuse_unknown_method(resize)
    size = size_of(image_size)
    given = None if spec is None else resolve(spec)
    path, config = located(
        source, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    with open_file(path, ema=ema) as (tensors, metadata):
        refuse_odd_entries(tensors)
        carried = spec_of(metadata, os.fspath(path))
        if carried is not None and given is not None and given != carried:
            raise SpecError(
                f"{path} carries the spec {carried.name!r}, which differs from the one given, {given.name!r}; "
                "leave spec out to take the file's."
            )
        known = given if carried is None else carried
        if known is not None:
            names = "coatref" if carried is not None and dialect is None else dialect  # a file of our own has ours
            reading = reading_as(tensors, known, names, ema=ema, any_size=size is not None)
        else:
            try:
                reading = as_configured(tensors, dialect, config, ema)
            except InputError as error:
                raise InputError(f"{path} does not say which network it holds: {error}") from None
        return converted(
            tensors, reading, library, wanted, size, resize, device=device, allow_non_finite=allow_non_finite
        )


def as_configured(
    tensors: Mapping[str, Any], dialect: str | None, config: Mapping[str, Any] | None, ema: bool
) -> Reading:
    """The reading of tensors that no spec was given for, with the help of timm's config.json where there is one.

    Raises:
        InputError: no named spec fits, or several do.
        FileFormatError, SpecError: the config.json has nonsense in what is read of it.
    """
    name, size = said_by(config)
    reading = recognised(tensors, dialect, ema=ema, architecture=name, image_size=size)
    if config is None or reading.dialect.name != "timm":
        return reading
    preprocessing = preprocessing_of(config)
    return reading if preprocessing is None else reading._replace(spec=reading.spec.replace(preprocessing=preprocessing))


def said_by(config: Mapping[str, Any] | None) -> tuple[str | None, tuple[int, int] | None]:
    """The spec's name and the image size that timm's config.json tells, each None where it tells none that makes sense."""
    if config is None:
        return None, None
    architecture = config.get("architecture")
    name = f"timm/{architecture}" if isinstance(architecture, str) else None
    settings = config.get("pretrained_cfg")
    size = settings.get("input_size") if isinstance(settings, dict) else None
    try:
        sides = size_of(size[1:]) if isinstance(size, list) and len(size) == 3 else None
    except CoatrefError:
        sides = None
    return (name if name in specs() else None), sides
