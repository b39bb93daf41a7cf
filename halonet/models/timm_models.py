"""timm's models with local attention, by timm's names, for its weights.

PyTorch Image Models (timm), Ross Wightman: `timm/models/byoanet.py` says what
they are made of, and holds the hub ids of the weights.
"""

_TIMM = dict(
  heads=(8, 8, 8, 8),
  rb=4.0,
  stem="tiered",
  project_first=False,
  timm=True,
  mask_padding=False,
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
    | dict(depths=(2, 2, 2, 2), operators=("c", "c", "ch", "h"), halo_size=2),
  ),
  "sehalonet33ts": (
    256,
    _TIMM
    | dict(
      depths=(2, 3, 3, 2),
      operators=("c", "cch", "cch", "h"),
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
      operators=("c", "ccch", "ch", "ch"),
      heads=(8, 4, 8, 8),
      activation="silu",
    ),
  ),
  "eca_halonext26ts": (
    256,
    _TIMM
    | dict(
      depths=(2, 2, 2, 2),
      operators=("c", "c", "ch", "h"),
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
      operators=("c", "ch", "ch", "cg"),
      heads=(8, 8, 8, 4),
      stem_pool=False,
      activation="silu",
    ),
  ),
  "haloregnetz_b": (
    224,
    _TIMM
    | dict(
      depths=(2, 6, 12, 2),
      operators=("c", "c", "ccch", "h"),
      out_widths=(48, 96, 192, 288),
      rb=3.0,
      inverted=True,
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
