"""The forward pass as an ONNX graph.

The definition runs on arrays that write down what is done with them (`arrays`, `namespace`), with ONNX's own operators for
the primitives that have one (`operators`). Two ready-made ways were tried on timm/coatnet_0_rw_224 and left. ndonnx 0.23
traces no free batch axis, whose length is None there, nor GELU without an erf, for want of `copysign`. torch's exporter
(2.13) needs 11 s and 1,716 nodes for the fast forms, 45 s and 7,284 nodes for the definition, where this takes 0.2 s and
569; and its float64 graphs hold Conv and Erf, of which onnxruntime has no float64.
"""

from coatref.onnx_export.export import Exported, export_onnx

__all__ = ["Exported", "export_onnx"]
