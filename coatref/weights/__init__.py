"""Reading and writing parameters: files of our own, and other projects' names and layouts."""

from coatref.weights.convert import convert
from coatref.weights.export import export
from coatref.weights.load import load
from coatref.weights.own_file import save

__all__ = ["convert", "export", "load", "save"]
