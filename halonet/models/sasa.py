"""SASA: ResNets whose spatial operator is per-pixel local self-attention.

"Stand-Alone Self-Attention in Vision Models", Ramachandran et al., NeurIPS
2019, arXiv:1906.05909. The window of table 4 is the field `window_size`.
"""


def _row(depths, **fields):
  fields = dict(operators=("per_pixel",), rb=4.0, heads=(8, 8, 8, 8)) | fields
  return 224, dict(depths=depths, **fields)


_DEPTHS = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3)}

# Table 1: with a convolution for a stem, and of attention alone. Name → (image
# size, fields).
SASAS = {
  f"sasa_resnet{number}{name}": _row(depths, **fields)
  for number, depths in _DEPTHS.items()
  for name, fields in (("", {}), ("_full", dict(stem="attention")))
}

# The other tables are about the 50 layers.
for _name, _fields in (
  # Table 3: stages with attention, the others with convolutions.
  ("stages1", dict(operators=("per_pixel", "conv"))),
  ("stages12", dict(operators=("per_pixel", "per_pixel", "conv"))),
  (
    "stages123",
    dict(operators=("per_pixel", "per_pixel", "per_pixel", "conv")),
  ),
  ("stages234", dict(operators=("conv", "per_pixel"))),
  ("stages34", dict(operators=("conv", "conv", "per_pixel"))),
  ("stages4", dict(operators=("conv", "conv", "conv", "per_pixel"))),
  # Table 5: positions.
  ("absolute", dict(position="absolute")),
  ("no_position", dict(position="none")),
  # Table 6: logits from the relative positions alone.
  ("no_content", dict(content=False)),
  # Table 7: values of the stem.
  ("full_linear", dict(stem="attention_linear")),
  ("full_conv", dict(stem="attention_conv")),
):
  SASAS[f"sasa_resnet50_{_name}"] = _row(_DEPTHS[50], **_fields)
