"""ResNets: the baselines of HaloNet and SASA, and HaloNet's for detection.

"Deep Residual Learning for Image Recognition", He et al., CVPR 2016, with the
stride in the 3×3 convolution, as is usual since.
"""

_RESNET = dict(operators=("conv",), rb=4.0)


def _last_stage(block_size):
  """HaloNet, table 5: local attention for the last stage's convolutions."""
  return dict(
    channel_attention="se_last",
    operators=("conv", "conv", "conv", "halo"),
    block_size=block_size,
    halo_size=3,
  )


# Name → (image size, fields).
RESNETS = {
  f"resnet{number}{name}": (224, _RESNET | dict(depths=depths) | fields)
  for number, depths in ((50, (3, 4, 6, 3)), (101, (3, 4, 23, 3)))
  for name, fields in (
    ("", {}),
    ("_se", dict(channel_attention="se_last")),
    ("_se_halo_b8", _last_stage(8)),
    ("_se_halo_b32", _last_stage(32)),
  )
}

# SASA, table 1.
RESNETS["resnet26"] = (224, _RESNET | dict(depths=(1, 2, 4, 1)))
RESNETS["resnet38"] = (224, _RESNET | dict(depths=(2, 3, 5, 2)))

# HaloNet, table 3.
RESNETS["resnet50_se_silu"] = (
  224,
  RESNETS["resnet50_se"][1] | dict(activation="silu"),
)
