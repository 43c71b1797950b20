"""coatref: the reference definition of CoAtNet (Dai et al. 2021, arXiv 2106.04803), as pure functions.

    import coatref
    params = coatref.load("model.safetensors", spec="timm/coatnet_0_rw_224")
    logits = coatref.forward(params, x)  # x: (N, H, W, 3), any array-API library

`specs` and `spec` give the named networks, `init`, `load` and `convert` their parameters, `forward` and `trace` compute,
`save` stores. Every error raised on purpose derives from `CoatrefError`.
"""

from coatref.errors import (
    CoatrefError,
    DtypeError,
    FileFormatError,
    InputError,
    LibraryError,
    MissingDependencyError,
    ShapeError,
    SizeError,
    SpecError,
    UnknownSpecError,
    WeightsError,
)
from coatref.images import preprocess, preprocess_images
from coatref.initialise import init
from coatref.model import forward, trace
from coatref.params import Params
from coatref.specification import Preprocessing, Spec, spec, specs
from coatref.weights import convert, load, save

__all__ = [
    "CoatrefError",
    "DtypeError",
    "FileFormatError",
    "InputError",
    "LibraryError",
    "MissingDependencyError",
    "Params",
    "Preprocessing",
    "ShapeError",
    "SizeError",
    "Spec",
    "SpecError",
    "UnknownSpecError",
    "WeightsError",
    "convert",
    "forward",
    "init",
    "load",
    "preprocess",
    "preprocess_images",
    "save",
    "spec",
    "specs",
    "trace",
]

__version__ = "0.1.0"
