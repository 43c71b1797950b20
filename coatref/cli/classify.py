"""`coatref classify`: what a checkpoint takes images for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from coatref.cli.arguments import CHECKPOINT, Backend, Device, Dtype, Json, Quiet, RunSize, SpecName, parse_size
from coatref.cli.engine import make_engine
from coatref.cli.photographs import MOST, classify_photographs
from coatref.errors import InputError

EXAMPLES = """Examples:

coatref classify cat.jpg dog.jpg --weights hf-hub:timm/coatnet_0_rw_224.sw_in1k

coatref classify photographs/ --weights coatnet0_224_imagenet.h5 --backend torch --batch 16

coatref classify cat.jpg --weights mine.safetensors --spec coatnet_0 --top 3 --json"""

# What counts as an image in a folder. A list of our own, since Pillow claims endings of other things too, such as .h5.
ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def classify(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES", help="Image files, or folders for the images right in them.")
    ],
    weights: Annotated[str, typer.Option("--weights", metavar="SOURCE", help=CHECKPOINT)],
    spec: SpecName = None,
    top: Annotated[int, typer.Option("--top", metavar="K", min=1, help="Classes shown of each image.")] = MOST,
    batch: Annotated[
        int | None,
        typer.Option("--batch", metavar="N", min=1, help="Images at a time; else 1 on a CPU, 8 on an accelerator."),
    ] = None,
    backend: Backend = "numpy",
    dtype: Dtype = "float32",
    device: Device = None,
    size: RunSize = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Classify images: the likeliest classes of each, with probability, logit and, where it is known, name.

    Images are prepared as the checkpoint's own evaluation does it. Of a folder, those right in it are taken, by name.

    Classes are named by the checkpoint's config.json, or by an installed timm's ImageNet table of as many classes.
    """
    wanted = parse_size(size)
    files = image_files(images)
    engine = make_engine(backend, dtype, device, definition=False)
    classify_photographs(engine, weights, spec, files, wanted, most=top, batch=batch, as_json=as_json, quiet=quiet)


def image_files(given: Sequence[Path]) -> list[Path]:
    """The files themselves, and for each folder the images in it by name.

    Raises:
        FileNotFoundError: there is no such file or folder.
        InputError: a folder holds no image, or something is neither a file nor a folder.
    """
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(each for each in path.iterdir() if each.suffix.lower() in ENDINGS and each.is_file())
            if not inside:
                raise InputError(
                    f"The folder {path} holds no image, which is a file that ends in {', '.join(ENDINGS)}."
                )
            found += inside
        elif path.is_file():
            found.append(path)
        elif path.exists():
            raise InputError(f"{path} is a pipe or device; name image files, or folders with images in them.")
        else:
            raise FileNotFoundError(f"There is no image {path}.")
    return found
