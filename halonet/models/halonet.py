"""HaloNet: ResNets whose spatial operator is blocked local self-attention.

"Scaling Local Self-Attention for Parameter Efficient Visual Backbones",
Vaswani et al., CVPR 2021, arXiv:2103.12731.
"""


def _row(block_size, halo_size, rv, rb, depth3, df=None, **fields):
  return dict(
    block_size=block_size,
    halo_size=halo_size,
    rv=rv,
    rb=rb,
    depths=(3, 3, depth3, 3),
    df=df,
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

# Table 4: H7 with convolutions in the first stages. The paper does not say how
# wide a convolution's output is; here it is as wide as its input (r_v is for
# attention alone), which comes nearest to "about 67 M" for the first two.
for _name, _operators in (
  ("conv1", ("conv", "halo")),
  ("conv12", ("conv", "conv", "halo")),
  ("conv123", ("conv", "conv", "conv", "halo")),
):
  HALONETS[f"halonet_h7_{_name}"] = (
    600,
    _row(10, 3, 4.0, 3.5, 26, 2048, operators=_operators),
  )

# Table 6: H4 with stage widths from 128. Its 85 M fit r_b = 4 without d_f.
for _name, _fields in (
  ("", {}),
  ("_patch4", dict(stem="patch4")),
  ("_conv12", dict(operators=("conv", "conv", "halo"))),
):
  HALONETS[f"halonet_h4_base128{_name}"] = (
    256,
    _row(12, 2, 1.0, 4.0, 12, base_width=128, **_fields),
  )

# Table 3: a HaloNet like ResNet-50; label smoothing and RandAugment belong to
# the training. The paper does not say which block and halo it has: H1's here.
for _name, _fields in (
  ("", {}),
  ("_se", dict(channel_attention="se_last")),
  ("_se_silu", dict(channel_attention="se_last", activation="silu")),
):
  HALONETS[f"halonet50{_name}"] = (
    256,
    dict(block_size=8, halo_size=3, rb=4.0, depths=(3, 4, 6, 3), **_fields),
  )
