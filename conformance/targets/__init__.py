"""Adapters: from what a user writes on the command line to a `Target`."""
