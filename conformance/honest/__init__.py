"""Honest implementations: right ones that round differently, on which the judge must never raise a false alarm."""

from coatref.conformance.honest.variants import Variant, absent, variants

__all__ = ["Variant", "absent", "variants"]
