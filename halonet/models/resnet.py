"""ResNets: HaloNet's baselines, and its detection backbones.

"Deep Residual Learning for Image Recognition", He et al., CVPR 2016, with the
stride in the 3×3 convolution, as is usual since.
"""

_RESNET = dict(operators=("c",), rb=4.0)

# Name → (image size, fields).
RESNETS = {}

for _layers, _depths in ((50, (3, 4, 6, 3)), (101, (3, 4, 23, 3))):
  for _name, _fields in (
    ("", {}),
    # Table 3, and the backbones of Table 5.
    ("_se", dict(channel_attention="se_last")),
    ("_se_silu", dict(channel_attention="se_last", activation="silu")),
    # Table 5: local attention in place of the last stage's convolutions.
    (
      "_se_halo_b8",
      dict(
        channel_attention="se_last",
        operators=("c", "c", "c", "h"),
        block_size=8,
        halo_size=3,
      ),
    ),
    (
      "_se_halo_b32",
      dict(
        channel_attention="se_last",
        operators=("c", "c", "c", "h"),
        block_size=32,
        halo_size=3,
      ),
    ),
  ):
    RESNETS[f"resnet{_layers}{_name}"] = (
      224,
      _RESNET | dict(depths=_depths) | _fields,
    )
