"""Import timm where torchvision has lost its compiled operators.

The torchvision wheel of the default index is built for CUDA: beside a CPU build of torch its `_C` library does not
load, and `import torchvision` (which timm needs) then fails with "operator torchvision::nms does not exist", because
it registers shape functions for operators that only that library declares. Declaring the two schemas first is enough:
nothing in timm's models or transforms calls them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

# The operators whose shape functions torchvision 0.28 registers whether or not its compiled library was loaded.
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def has_operator(torch: Any, schema: str) -> bool:
    """Whether torch's dispatcher knows the torchvision operator that the schema names."""
    return hasattr(torch.ops.torchvision, schema.split("(")[0])


def load_compiled_operators(torch: Any) -> None:
    """Load torchvision's own compiled library if it can be loaded; torchvision's import then finds it loaded."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    loaders = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    compiled = importlib.machinery.FileFinder(str(Path(spec.origin).parent), loaders).find_spec("_C")
    if compiled is None or compiled.origin is None:
        return
    try:
        torch.ops.load_library(compiled.origin)
    except (ImportError, OSError):
        pass  # the very failure this module is for


@functools.cache  # which keeps the declarations: torch takes them back when the library object is collected
def declare_operators() -> Any:
    """Declare the operators that are absent, for as long as the process lives; what was declared, or None."""
    torch = importlib.import_module("torch")
    load_compiled_operators(torch)
    absent = [schema for schema in SCHEMAS if not has_operator(torch, schema)]
    if not absent:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in absent:
        library.define(schema)
    return library


def timm() -> ModuleType:
    """The timm module, with `timm.data.create_transform` usable; ImportError where timm or torch is not installed."""
    if "torchvision" not in sys.modules:
        declare_operators()
    importlib.import_module("timm.data")
    return importlib.import_module("timm")
