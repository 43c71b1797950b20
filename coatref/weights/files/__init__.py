"""Reading files of tensors without running anything that they contain, and without believing anything that they say.

What a file declares is checked against its own size before a byte of any tensor is read, and a tensor is read only when
it is asked for, so names and shapes can be refused first: a small file cannot make its reader take much memory. One
module for each format; `open_file` takes the one that the path's ending names.
"""

from coatref.weights.files.host import on_host
from coatref.weights.files.limits import LARGEST_HEADER
from coatref.weights.files.opening import open_file, path_of
from coatref.weights.files.stored import Content, Stored, Tensors

__all__ = ["LARGEST_HEADER", "Content", "Stored", "Tensors", "on_host", "open_file", "path_of"]
