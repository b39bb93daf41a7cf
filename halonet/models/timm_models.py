"""timm's models with local attention, by timm's names, for its weights.

PyTorch Image Models (timm), Ross Wightman: `timm/models/byoanet.py` and
`swin_transformer.py` say what they are made of, and hold the hub ids of the
weights. `halonet.models.pvt` has the models of its `pvt_v2.py`.
"""

from halonet.models.pvt import PVT_V2S
from halonet.models.swin import SWINS

_TIMM = dict(
  heads=(8, 8, 8, 8),
  rb=4.0,
  stem="tiered",
  block_type="timm",
  operators=("timm_halo",),
)

# Name → (image size, fields).
TIMM_MODELS = {
  # Not the paper's H1: its tables, masks and heads differ. No weights.
  "halonet_h1_timm": (
    256,
    _TIMM | dict(stem="conv7", rb=1.0, block_size=8, halo_size=3),
  ),
  "halonet26t": (
    256,
    _TIMM
    | dict(
      depths=(2, 2, 2, 2),
      operators=("conv", "conv", "conv,timm_halo", "timm_halo"),
      halo_size=2,
    ),
  ),
  "sehalonet33ts": (
    256,
    _TIMM
    | dict(
      depths=(2, 3, 3, 2),
      operators=(
        "conv",
        "conv,conv,timm_halo",
        "conv,conv,timm_halo",
        "timm_halo",
      ),
      out_widths=(256, 512, 1024, 1536),
      stem_pool=False,
      activation="silu",
      channel_attention="se",
      df=1280,
    ),
  ),
  "halonet50ts": (
    256,
    _TIMM
    | dict(
      depths=(3, 4, 6, 3),
      operators=(
        "conv",
        "conv,conv,conv,timm_halo",
        "conv,timm_halo",
        "conv,timm_halo",
      ),
      heads=(8, 4, 8, 8),
      activation="silu",
    ),
  ),
  "eca_halonext26ts": (
    256,
    _TIMM
    | dict(
      depths=(2, 2, 2, 2),
      operators=("conv", "conv", "conv,timm_halo", "timm_halo"),
      halo_size=2,
      activation="silu",
      channel_attention="eca",
      group_width=16,
      qk_head_dim=16,
    ),
  ),
  "halo2botnet50ts_256": (
    256,
    _TIMM
    | dict(
      depths=(3, 4, 6, 3),
      operators=("conv", "conv,timm_halo", "conv,timm_halo", "conv,global"),
      heads=(8, 8, 8, 4),
      stem_pool=False,
      activation="silu",
    ),
  ),
  "lamhalobotnet50ts_256": (
    256,
    _TIMM
    | dict(
      depths=(3, 4, 6, 3),
      operators=("conv", "conv,lambda", "conv,timm_halo", "conv,global"),
      heads=(8, 4, 8, 4),
      lambda_window=13,
      stem_pool=False,
      activation="silu",
    ),
  ),
  "haloregnetz_b": (
    224,
    _TIMM
    | dict(
      depths=(2, 6, 12, 2),
      operators=("conv", "conv", "conv,conv,conv,timm_halo", "timm_halo"),
      out_widths=(48, 96, 192, 288),
      rb=3.0,
      block_type="inverted",
      stem="conv3",
      stem_pool=False,
      base_width=32,
      activation="silu",
      channel_attention="se",
      se_ratio=0.25,
      group_width=16,
      block_size=7,
      halo_size=2,
      qk_ratio=0.33,
      df=1536,
    ),
  ),
}

TIMM_SWINS = {f"{name}_patch4_window7_224": row for name, row in SWINS.items()}

# Those of `halonet.models.resnets` that are timm's, and torchvision's.
# resnet26 is not: SASA's has other depths.
TIMM_RESNETS = ("resnet50", "resnet101", "resnet152")

# All names for which timm's weights can be read.
TIMM_NAMES = (*TIMM_MODELS, *TIMM_SWINS, *PVT_V2S, *TIMM_RESNETS)
