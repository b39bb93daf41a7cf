"""What the weights that a training begins with say of its config."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from halonet.errors import UsageError
from halonet.interop.pretrained import PRETRAINED, load_preprocessing
from halonet.models.upgrade import upgrade

# Fields of a config's `data` that say how images are prepared.
_PREPARED = ("image_size", "mean", "std", "crop_fraction", "interpolation")


def is_timm(init_from: str) -> bool:
  """Says whether `config.init_from` names weights of timm's."""
  return (
    init_from == "timm"
    or init_from.startswith("hf-hub:")
    or (init_from.endswith(".safetensors"))
  )


def fields_of_weights(values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns how images are prepared for the weights in `init_from`.

  A workdir also gives the fields of its model.

  Args:
    values: fields of a config that are set, by dotted names.

  Returns:
    Fields by dotted names.

  Raises:
    UsageError: if there are no weights, or they do not say.
  """
  init_from = values.get("init_from")
  if init_from is None:
    raise UsageError(
      "config.init_from is None and config.like_weights True; name the weights:"
      " --config.init_from=timm, a .safetensors file, or the workdir of a run"
    )
  try:
    if is_timm(init_from):
      return _of_timm(values.get("model.name"), init_from)
    return _of_run(epath.Path(init_from) / "config.json")
  except UsageError as error:
    raise UsageError(f"config.init_from is {init_from}: {error}") from None


def _of_timm(name, init_from):
  if name not in PRETRAINED:
    raise UsageError(
      f"config.model.name is {name}; timm has weights of"
      f" {', '.join(PRETRAINED)}"
    )
  source = None if init_from == "timm" else init_from
  expected = dataclasses.asdict(load_preprocessing(name, source))
  expected["crop_fraction"] = expected.pop("crop")
  return {f"data.{field}": expected[field] for field in _PREPARED}


def _of_run(path):
  if not path.exists():
    raise UsageError("it is no workdir of a training: there is no config.json")
  try:
    config = json.loads(path.read_text())
    model = upgrade(config["model"])
    prepared = {f"data.{field}": config["data"][field] for field in _PREPARED}
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UsageError(f"{path} cannot be read: {error!r}") from None
  prepared["packages"] = tuple(config.get("packages", ()))
  return prepared | {f"model.{field}": model[field] for field in model}
