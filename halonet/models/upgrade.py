"""Fields of models that configs of earlier versions hold."""

from collections.abc import Mapping
from typing import Any

from halonet.models.registry import model_fields

_LETTERS = {"c": "conv", "p": "per_pixel", "g": "global"}  # And h, below.
# Fields that some parts of today no longer have. With these values they had no
# effect.
_NEUTRAL = {
  "qk_ratio": 1.0,
  "qk_head_dim": None,
  "out_widths": (),
  "rv": 1.0,
  "mask_window": False,
}
# Models that are gone, and those that they were variants of. A config has all
# fields in which they differ.
_GONE = {
  name: name.partition("_")[0]
  for name in (
    "resnet50_se_halo_b8",
    "resnet50_se_halo_b32",
    "resnet101_se",
    "resnet101_se_halo_b8",
    "resnet101_se_halo_b32",
  )
}

# Fields of earlier versions, and what does the same.
SUCCESSORS = {
  "model.timm": "write timm_halo in place of halo in config.model.operators",
  "model.project_first": "set config.model.block_type to bottleneck or timm",
  "model.inverted": "set config.model.block_type to inverted",
}


def upgrade(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Renews the part `model` of a config that an earlier version wrote.

  Args:
    fields: fields of the part, `name` among them.

  Returns:
    The fields as `create_model` takes them, and `name`; a copy where they are
    new already.

  Raises:
    ValueError: if no model of today is the same.
  """
  fields = dict(fields)
  if fields.get("name") in _GONE:
    fields["name"] = _GONE[fields["name"]]
  if str(fields.get("name")).startswith("halonet_h4_base128"):
    # Before there was a width of the stem, theirs was 128.
    fields.setdefault("stem_width", None)
  if "timm" in fields:
    fields = _from_letters(fields)
  # The operator halo has a position since it has rqk.
  if fields.get("position", "relative") != "relative" and "rqk" not in fields:
    used = _used(fields)
    if {"halo", "per_pixel"} <= used:
      raise ValueError(
        f"config of an earlier version: position {fields['position']} was that"
        " of per_pixel alone, and today is that of halo, too"
      )
    if "halo" in used:
      fields["position"] = "relative"
  return fields


def _used(fields):
  """Names the operators of a model."""
  return set(",".join(fields["operators"]).split(","))


def _from_letters(fields):
  """Renews the fields of the first version.

  It had letters for operators, a flag for timm's way, and kept all fields of
  all models.
  """
  halo = "timm_halo" if fields.pop("timm") else "halo"
  letters = _LETTERS | {"h": halo}
  fields["operators"] = tuple(
    ",".join(letters[letter] for letter in pattern)
    for pattern in fields["operators"]
  )
  used = _used(fields)
  projects = fields.pop("project_first", True)
  fields["block_type"] = "bottleneck" if projects else "timm"
  if fields.pop("inverted", False):
    fields["block_type"] = "inverted"
  if "conv" not in used and fields["channel_attention"] in ("se", "eca"):
    fields["channel_attention"] = "none"
  name = fields.pop("name")
  known = model_fields(name, fields)
  lost = {
    field: fields[field]
    for field, neutral in _NEUTRAL.items()
    if field not in known and _tupled(fields.get(field, neutral)) != neutral
  }
  if used == {"conv"}:
    lost = {k: v for k, v in lost.items() if k == "out_widths"}
  elif "timm_halo" in used and fields.get("mask_padding"):
    lost["mask_padding"] = True
  if lost:
    raise ValueError(
      f"config of an earlier version: no {name} of this one has"
      f" {', '.join(f'{field} {value}' for field, value in lost.items())}"
    )
  return {"name": name} | {
    field: value for field, value in fields.items() if field in known
  }


def _tupled(value):
  return tuple(value) if isinstance(value, list) else value
