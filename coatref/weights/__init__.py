"""Reading and writing parameters: files of our own, and other projects' names and layouts."""

from coatref.weights.convert import convert, load
from coatref.weights.own_file import save

__all__ = ["convert", "load", "save"]
