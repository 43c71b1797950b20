"""The judge: whether an implementation of CoAtNet is right, where it goes wrong, and what it computes instead.

    report = coatref.check("timm:coatnet_0_rw_224")

`check` judges a target and gives a `Report`; a `Target` is anything that computes a network's output, with the spec and
the `Precision` that it declares; `parametrize` makes tests for pytest of a judgement.
"""

from coatref import check
from coatref.conformance.decorator import parametrize
from coatref.conformance.precision import Precision
from coatref.conformance.report.results import Report
from coatref.conformance.target import Target

__all__ = ["Precision", "Report", "Target", "check", "parametrize"]

if __name__ != "coatref.conformance":
    raise ImportError(f"this package is coatref.conformance, not {__name__}: import it under that name")
