"""Swin by name: a transformer with attention in shifted windows.

"Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", Liu
et al., ICCV 2021, arXiv:2103.14030.
"""

_SWIN = dict(
  depths=(2, 2, 18, 2),
  widths=(96, 192, 384, 768),
  heads=(3, 6, 12, 24),
  operators=("window",),
  window_size=7,
)

# Name → (image size, fields).
SWINS = {
  "swin_tiny": (224, _SWIN | dict(depths=(2, 2, 6, 2))),
  "swin_small": (224, _SWIN),
  "swin_base": (
    224,
    _SWIN | dict(widths=(128, 256, 512, 1024), heads=(4, 8, 16, 32)),
  ),
}
