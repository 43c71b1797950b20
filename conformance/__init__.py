"""The judge: tells of any implementation whether it conforms (comes with a later issue)."""

if __name__ != "coatref.conformance":
    raise ImportError(f"this package is coatref.conformance, not {__name__}: import it under that name")
