"""ResNets: the baselines of HaloNet and SASA, and HaloNet's for detection.

"Deep Residual Learning for Image Recognition", He et al., CVPR 2016, with the
stride in the 3×3 convolution, as is usual since.
"""

_RESNET = dict(operators=("conv",), rb=4.0)


def _table5(**fields):
  return dict(channel_attention="se", se_ratio=1 / 8) | fields


def _last_stage(block_size):
  """Puts local attention in place of the last stage's convolutions."""
  return _table5(
    operators=("conv", "conv", "conv", "halo"),
    block_size=block_size,
    halo_size=3,
  )


_DEPTHS = {
  "resnet26": (1, 2, 4, 1),
  "resnet38": (2, 3, 5, 2),
  "resnet50": (3, 4, 6, 3),
  "resnet101": (3, 4, 23, 3),
  "resnet152": (3, 8, 36, 3),
}

# Name → (image size, fields). 26, 38 and 50 are of SASA, table 1.
RESNETS = {
  name: (224, _RESNET | dict(depths=depths)) for name, depths in _DEPTHS.items()
}

for _name, _size, _fields in (
  # HaloNet, table 3.
  ("resnet50_se", 256, dict(channel_attention="se_all")),
  (
    "resnet50_se_silu",
    256,
    dict(channel_attention="se_all", activation="silu"),
  ),
  # HaloNet, table 5: the backbones of detectors.
  ("resnet50_se8", 512, _table5()),
  ("resnet50_se8_halo_b8", 512, _last_stage(8)),
  ("resnet50_se8_halo_b32", 512, _last_stage(32)),
  ("resnet101_se8", 512, _table5()),
  ("resnet101_se8_halo_b8", 512, _last_stage(8)),
):
  RESNETS[_name] = (_size, RESNETS[_name.split("_")[0]][1] | _fields)
