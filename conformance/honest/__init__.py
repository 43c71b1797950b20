"""Honest implementations: right ones that round differently, on which the judge must never raise a false alarm.

`coatref.conformance.honest.variants.variants` lists them.
"""
