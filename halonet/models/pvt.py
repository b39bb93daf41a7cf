"""PVT and PVTv2 by name: transformers with attention to a reduced map.

"Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without
Convolutions", Wang et al., ICCV 2021, arXiv:2102.12122; "PVT v2: Improved
Baselines with Pyramid Vision Transformer", Wang et al., 2022, arXiv:2106.13797.
"""

_BOTH = dict(
  widths=(64, 128, 320, 512),
  heads=(1, 2, 5, 8),
  operators=("spatial_reduction",),
  sr_ratios=(8, 4, 2, 1),
  mlp_ratios=(8.0, 8.0, 4.0, 4.0),
  norm_epsilon=1e-6,
)
_PVT = _BOTH | dict(
  merging="conv2",
  position_size=224,
  class_token=True,
)
_PVT_V2 = _BOTH | dict(
  stem="embed7",
  merging="conv3",
  mlp="conv",
  stage_norm=True,
)

# Name → (image size, fields).
PVTS = {
  "pvt_tiny": (224, _PVT | dict(depths=(2, 2, 2, 2))),
  "pvt_small": (224, _PVT | dict(depths=(3, 4, 6, 3))),
  "pvt_medium": (224, _PVT | dict(depths=(3, 4, 18, 3))),
  "pvt_large": (224, _PVT | dict(depths=(3, 8, 27, 3))),
}
PVT_V2S = {
  "pvt_v2_b0": (
    224,
    _PVT_V2 | dict(depths=(2, 2, 2, 2), widths=(32, 64, 160, 256)),
  ),
  "pvt_v2_b1": (224, _PVT_V2 | dict(depths=(2, 2, 2, 2))),
  "pvt_v2_b2": (224, _PVT_V2 | dict(depths=(3, 4, 6, 3))),
  "pvt_v2_b3": (224, _PVT_V2 | dict(depths=(3, 4, 18, 3))),
  "pvt_v2_b4": (224, _PVT_V2 | dict(depths=(3, 8, 27, 3))),
  "pvt_v2_b5": (
    224,
    _PVT_V2 | dict(depths=(3, 6, 40, 3), mlp_ratios=(4.0,)),
  ),
}
