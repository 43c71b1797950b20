"""What is measured: a network at a size, batch, number of threads, data type and device."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

MODELS = ("coatnet_0_rw_224", "coatnet_1_rw_224")
TYPES = {"f64": "float64", "f16": "float16", "tf32": "tf32"}  # prefix of a label -> data type; none: float32

# Labels by device. The growth of time and memory is measured on the first model and the main forms only.
MAIN = {"cpu": ("b1-t2", "b1-t1", "b8-t2", "f64-b1-t2"), "cuda": ("b1", "b64", "f16-b1", "f16-b64")}
SIZES, BATCHES = (224, 384, 512), (1, 2, 4, 8, 16, 32)
GROWTH = {
    "cpu": (*(f"{size}px-b1-t2" for size in SIZES[1:]), *(f"b{batch}-t2" for batch in BATCHES if batch not in (1, 8))),
    "cuda": (),
}
QUICK = {"cpu": ("b1-t2",), "cuda": ("b1", "f16-b64")}

LABEL = re.compile(r"(?:(?P<size>\d+)px-)?(?:(?P<dtype>f64|f16|tf32)-)?b(?P<batch>\d+)(?:-t(?P<threads>\d+))?")


@dataclass(frozen=True)
class Case:
    """One thing to measure every form on."""

    model: str
    size: int = 224
    batch: int = 1
    threads: int = 2
    dtype: str = "float32"  # "tf32": values of float32 whose products a GPU may take in TF32
    device: str = "cpu"

    @property
    def label(self) -> str:
        """Everything but the model, as "384px-f64-b1-t2"; `parse` reads it."""
        short = {name: f"{prefix}-" for prefix, name in TYPES.items()}
        size = "" if self.size == 224 else f"{self.size}px-"
        threads = f"-t{self.threads}" if self.device == "cpu" else ""
        return f"{size}{short.get(self.dtype, '')}b{self.batch}{threads}"

    @property
    def key(self) -> str:
        """The case as it is called in a file of results."""
        return f"{self.model}/{self.label}"

    @property
    def main(self) -> bool:
        """Whether it gets a table of its own on the page: not a step of the growth."""
        return self.label not in GROWTH[self.device]

    @property
    def storage(self) -> str:
        """The data type of weights and images."""
        return "float32" if self.dtype == "tf32" else self.dtype

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return dataclasses.asdict(self)


def parse(model: str, label: str, device: str) -> Case:
    """The case that a label means.

    Raises:
        ValueError: the label has another form.
    """
    match = LABEL.fullmatch(label)
    if match is None:
        raise ValueError(
            f"A configuration is written like b8-t2, f64-b1-t2 or 384px-b1-t2 (batch 8, 2 threads and so on), got {label!r}."
        )
    return Case(
        model=model,
        size=int(match["size"] or 224),
        batch=int(match["batch"]),
        threads=int(match["threads"] or 2),
        dtype=TYPES.get(match["dtype"] or "", "float32"),
        device=device,
    )
