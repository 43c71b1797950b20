"""Trains the checkpoint that ships with coatref: `python examples/train_digits.py`, some four minutes on one free core.

The network is the definition itself, `coatref.forward`, under torch's autograd: the parameter tree holds torch tensors
that require gradients. The definition knows BatchNorm as at inference; training puts another function in its place
through the seam that `forward` has for that, `backend=Primitives(batch_norm=...)`.

Needs torch and scikit-learn, whose copy of the handwritten digits it reads. Of each class every fifth image, in their
order there, is held out: never trained on, and looked at once, when training is over. `--validate` is for choosing
settings: it holds out every fifth image of what is left, reports on those, and writes nothing.

It is deterministic: all random numbers are NumPy's from one seed, and torch computes on one thread. Another processor or
another torch may round otherwise, which leads to other weights of the same quality.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from sklearn.datasets import load_digits
from torch.nn import functional

import coatref
from coatref import digits
from coatref.params import Params
from coatref.primitives import Primitives
from coatref.specification.paper import layout

BATCH = 48
LEARNING_RATE = 3e-3
WARMUP = 0.1  # of all steps
WEIGHT_DECAY = 0.05  # of kernels; not of biases, norms and tables
LABEL_SMOOTHING = 0.1
MOMENTUM = 0.05  # of the running statistics
BORDER = -1.0  # paper, as `upscale` gives it


def digits_spec() -> coatref.Spec:
    """C-C-T-T as in the paper, two blocks in every stage, 3 and 4 heads in S3 and S4."""
    spec = layout(
        "digits", "CCTT", (2, 2, 2, 2, 2), (16, 16, 32, 48, 64), head_size=16, image_size=digits.IMAGE_SIZE, classes=10
    )
    return spec.replace(channels=1, preprocessing=digits.PREPROCESSING)


def split(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the part to train on and of the part held out: of each class, the 5th, 10th, 15th, ... image."""
    held = np.sort(np.concatenate([np.flatnonzero(labels == label)[4::5] for label in np.unique(labels)]))
    return np.setdiff1d(np.arange(len(labels)), held), held


def initial(spec: coatref.Spec, seed: int) -> Params:
    """Fresh parameters: kernels by fan-in, biases that are not zero, the rest as training usually starts.

    The loss does not see some biases: that of the stem's first convolution, which BatchNorm subtracts again, and those
    of the keys, which add the same to all logits of a query. They stay as they begin; at zero, nobody would notice an
    implementation that mixes them up with others.
    """
    drawn = coatref.init(spec, seed, scheme="distinct").flatten()
    return coatref.init(spec, seed).replace({name: drawn[name] for name in drawn if name.endswith((".w", ".b"))})


def training_batch_norm(
    x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, *, epsilon: float
) -> torch.Tensor:
    """BatchNorm as in training: by the statistics of the batch, towards which it moves the running ones in place.

    Shapes: x (N, H, W, C), the others (C,) -> (N, H, W, C).
    """
    x = x.permute(0, 3, 1, 2)  # torch wants channels second
    y = functional.batch_norm(x, mean, var, gamma, beta, training=True, momentum=MOMENTUM, eps=epsilon)
    return y.permute(0, 2, 3, 1)


def augmented(x: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Each image turned, sheared, scaled and shifted a little. Shapes: (N, H, W, 1) -> (N, H, W, 1)."""
    n, height, width, _ = x.shape
    angle, shear = random.uniform(-0.2, 0.2, n), random.uniform(-0.15, 0.15, n)
    rows, columns = random.uniform(0.85, 1.15, n), random.uniform(0.85, 1.15, n)
    down, right = random.uniform(-0.15, 0.15, n), random.uniform(-0.15, 0.15, n)  # of half the image
    cos, sin, aspect = np.cos(angle), np.sin(angle), height / width
    top = np.stack([cos / columns, (shear - sin) * aspect / columns, right], axis=-1)  # sampling (x, y) from (x, y, 1)
    bottom = np.stack([sin / (aspect * rows), cos / rows, down], axis=-1)
    theta = torch.from_numpy(np.stack([top, bottom], axis=1)).to(x.dtype)  # (N, 2, 3)
    grid = functional.affine_grid(theta, [n, 1, height, width], align_corners=False)
    pixels = x.permute(0, 3, 1, 2) - BORDER  # grid_sample pads with zeros
    return functional.grid_sample(pixels, grid, align_corners=False).permute(0, 2, 3, 1) + BORDER


def batches(count: int, random: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """One epoch's batches of indices, all of one size; the few left over wait for another epoch."""
    order = random.permutation(count)
    for start in range(0, count - BATCH + 1, BATCH):
        yield order[start : start + BATCH]


def rate(step: int, steps: int) -> float:
    """The learning rate: a linear warm-up, then half a cosine down to zero."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return LEARNING_RATE * (step + 1) / warmup
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def train(spec: coatref.Spec, images: NDArray[np.uint8], labels: NDArray[np.int64], epochs: int, seed: int) -> Params:
    """Trained parameters, in NumPy."""
    random = np.random.default_rng([seed, 2])
    params = initial(spec, seed).to(xp="torch")
    tensors: dict[str, Any] = params.flatten()
    trained = {name: tensor for name, tensor in tensors.items() if not name.endswith((".mean", ".var"))}
    for tensor in trained.values():
        tensor.requires_grad_()
    kernels = [tensor for name, tensor in trained.items() if name.endswith(".w")]
    others = [tensor for name, tensor in trained.items() if not name.endswith(".w")]
    groups = [{"params": kernels, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    training = Primitives(batch_norm=training_batch_norm)

    x, y = torch.from_numpy(digits.upscale(images)), torch.from_numpy(labels)
    steps, step = epochs * (len(images) // BATCH), 0
    for epoch in range(epochs):
        total = 0.0
        for batch in batches(len(images), random):
            for group in optimiser.param_groups:
                group["lr"] = rate(step, steps)
            logits = coatref.forward(params, augmented(x[batch], random), backend=training)
            loss = functional.cross_entropy(logits, y[batch], label_smoothing=LABEL_SMOOTHING)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
            optimiser.step()
            total += float(loss.detach())
            step += 1
        print(f"epoch {epoch + 1} of {epochs}: loss {total * epochs / steps:.4f}", flush=True)
    return params.to(xp="numpy")


def right(params: Params, images: NDArray[np.uint8], labels: NDArray[np.int64], dtype: str) -> int:
    """How many images the NumPy definition reads rightly."""
    params, x = params.to(dtype=dtype), digits.upscale(images).astype(dtype)
    parts = [coatref.forward(params, x[start : start + 64], backend="definition") for start in range(0, len(x), 64)]
    return int(np.sum(np.argmax(np.concatenate(parts), axis=-1) == labels))


def main() -> None:
    """Train, report and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(digits.__file__).parent / "data", help="folder to write to")
    parser.add_argument(
        "--validate", action="store_true", help="report on a part of the training images; write nothing"
    )
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    digit = load_digits()
    images, labels = digit.images.astype(np.uint8), digit.target.astype(np.int64)  # (1797, 8, 8), (1797,)
    trained_on, held = split(labels)
    if options.validate:
        images, labels = images[trained_on], labels[trained_on]
        trained_on, held = split(labels)

    started = time.perf_counter()
    spec = digits_spec()
    print(f"{len(trained_on)} images to train on, {len(held)} held out, {spec.num_parameters()} parameters")
    params = train(spec, images[trained_on], labels[trained_on], options.epochs, options.seed)
    print(f"trained in {time.perf_counter() - started:.0f} s")
    for dtype in ("float32", "float64"):
        count = right(params, images[held], labels[held], dtype)
        print(f"{dtype}: {count} of {len(held)} held-out images right, {100 * count / len(held):.2f} %")
    if not options.validate:
        coatref.save(params, options.out / "digits.safetensors")
        heldout = save({"images": images[held], "labels": labels[held]})
        (options.out / "digits_heldout.safetensors").write_bytes(heldout)


if __name__ == "__main__":
    main()
