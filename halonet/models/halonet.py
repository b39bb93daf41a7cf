"""HaloNet: ResNets whose spatial operator is blocked local self-attention.

"Scaling Local Self-Attention for Parameter Efficient Visual Backbones",
Vaswani et al., CVPR 2021, arXiv:2103.12731.
"""

# Convolutions in the first stages, the others as they are.
_CONV1 = ("conv", "halo")
_CONV12 = ("conv", "conv", "halo")
_CONV123 = ("conv", "conv", "conv", "halo")


def _row(block_size, halo_size, rv, rb, depth3, df=None, **fields):
  return dict(
    block_size=block_size,
    halo_size=halo_size,
    rv=rv,
    rb=rb,
    depths=(3, 3, depth3, 3),
    df=df,
    activation="silu",
    **fields,
  )


# Name → (image size, fields).
HALONETS = {
  # Table 2: b, h, r_v, r_b, blocks in stage 3, d_f.
  "halonet_h0": (256, _row(8, 3, 1.0, 0.5, 7)),
  "halonet_h1": (256, _row(8, 3, 1.0, 1.0, 10)),
  "halonet_h2": (256, _row(8, 3, 1.0, 1.25, 11)),
  "halonet_h3": (320, _row(10, 3, 1.0, 1.5, 12, 1024)),
  "halonet_h4": (384, _row(12, 2, 1.0, 3.0, 12, 1280)),
  "halonet_h5": (448, _row(14, 2, 2.5, 2.0, 23, 1536)),
  "halonet_h6": (512, _row(8, 4, 3.0, 2.75, 24, 1536)),
  "halonet_h7": (600, _row(10, 3, 4.0, 3.5, 26, 2048)),
}

# Table 4: H7 with convolutions and squeeze-and-excitation in the first stages.
# The paper puts the gate after the convolution; its ratio is that of table 5.
# How wide a convolution's output is, is open. Here it is as wide as its input,
# which gives 67.3, 66.9 and 54.5 M. The paper says "about 67 M" of all three;
# r_v times as wide it would be 67.8, 69.5 and 127.4 M.
for _name, _operators in (
  ("conv1", _CONV1),
  ("conv12", _CONV12),
  ("conv123", _CONV123),
):
  HALONETS[f"halonet_h7_{_name}"] = (
    600,
    HALONETS["halonet_h7"][1]
    | dict(operators=_operators, channel_attention="se", se_ratio=1 / 8),
  )

# Table 6: H4 with four changes (stage widths from 128, r_b = 4, four blocks in
# stage 2, no d_f), and the block and halo of the pre-training. The stem keeps
# table 2's 64 channels.
for _name, _fields in (
  ("", {}),
  ("_patch4", dict(stem="patch4")),
  ("_conv12", dict(operators=_CONV12)),
):
  HALONETS[f"halonet_h4_base128{_name}"] = (
    256,
    HALONETS["halonet_h4"][1]
    | dict(block_size=8, halo_size=2, rb=4.0, df=None, depths=(3, 4, 12, 3))
    | dict(base_width=128, stem_width=64)
    | _fields,
  )

_HALONET50 = dict(
  block_size=8,
  halo_size=3,
  rb=4.0,
  depths=(3, 4, 6, 3),
  heads=(4, 8, 16, 32),
)
_ALL = dict(channel_attention="se_all", activation="silu")

for _name, _fields in (
  # Table 3: a HaloNet like ResNet-50; label smoothing and RandAugment belong to
  # the training.
  ("", {}),
  ("_se", dict(channel_attention="se_all")),
  ("_se_silu", _ALL),
  # Appendix.
  ("_absolute", dict(position="absolute")),
  # Table A1: that of the last row, enlarged to about 30 M in one way each.
  # ResNet-101 adds its layers to stage 3, too.
  ("_layers98", _ALL | dict(depths=(3, 4, 22, 3))),
  ("_rv3", _ALL | dict(rv=3.0)),
  ("_rw125", _ALL | dict(base_width=80, stem_width=64, heads=(5, 10, 20, 40))),
  ("_rb65", _ALL | dict(rb=6.5)),
  ("_rqk65", _ALL | dict(rqk=6.5)),
):
  HALONETS[f"halonet50{_name}"] = (256, _HALONET50 | _fields)
