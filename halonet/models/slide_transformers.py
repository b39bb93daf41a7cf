"""Slide-Transformers by name: slide attention in early stages of Swin and PVT.

"Slide-Transformer: Hierarchical Vision Transformer with Local Self-Attention",
Pan et al., CVPR 2023, arXiv:2304.04237, table 1. The late stages are those of
the host.
"""

from halonet.models.pvt import PVT_V2S, PVTS
from halonet.models.swin import SWINS


def _slide(table, name, **fields):
  image_size, host = table[name]
  late = host["operators"][0]
  return image_size, host | dict(operators=("slide", "slide", late)) | fields


# Name → (image size, fields).
SLIDES = {
  "slide_swin_tiny": _slide(SWINS, "swin_tiny"),
  "slide_swin_small": _slide(SWINS, "swin_small"),
  "slide_swin_base": _slide(SWINS, "swin_base"),
  "slide_pvt_tiny": _slide(PVTS, "pvt_tiny"),
  "slide_pvt_small": _slide(PVTS, "pvt_small"),
  "slide_pvt_v2_b1": _slide(PVT_V2S, "pvt_v2_b1"),
  "slide_pvt_v2_b2": _slide(PVT_V2S, "pvt_v2_b2"),
}
