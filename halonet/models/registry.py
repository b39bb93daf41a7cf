"""Models by name."""

import dataclasses
import fnmatch
from typing import Any

from flax import linen as nn

from halonet.errors import unknown
from halonet.models.halonet import HALONETS, HaloNet


@dataclasses.dataclass(frozen=True)
class Entry:
  """How a name becomes a model.

  Attributes:
    module: the Linen module.
    fields: the fields that the name sets; the others keep their defaults.
    image_size: side in pixels of the square images that the source uses.
  """

  module: type[nn.Module]
  fields: dict[str, Any]
  image_size: int


_MODELS = {
  name: Entry(HaloNet, fields, image_size)
  for name, (image_size, fields) in HALONETS.items()
}


def create_model(name: str, **overrides: Any) -> nn.Module:
  """Makes a model by its name.

  Args:
    name: one of `list_models()`.
    **overrides: fields of the model to set, such as `num_classes=10`,
      `block_size=4`, `dtype="bfloat16"`; see the module's docstring.

  Returns:
    A Flax Linen module: `model.init(key, images)`, `model.apply(variables,
    images, train=False)` → logits; `method="features"` → stage outputs.

  Raises:
    ValueError: if there is no such model or field, or a value is impossible.
  """
  entry = get_entry(name)
  known = model_fields(name)
  for field in overrides:
    if field not in known:
      raise ValueError(unknown(f"field of {name},", field, known))
  return entry.module(**(entry.fields | overrides))


def list_models(pattern: str = "*") -> list[str]:
  """Returns the names that match a shell-style pattern, sorted."""
  return sorted(fnmatch.filter(_MODELS, pattern))


def get_entry(name: str) -> Entry:
  """Looks a name up; raises ValueError with the known names if it is none."""
  if name not in _MODELS:
    raise ValueError(unknown("model", name, _MODELS))
  return _MODELS[name]


def model_fields(name: str) -> dict[str, Any]:
  """Returns every field of a model that can be set, with the name's value."""
  entry = get_entry(name)
  fields = {
    field.name: field.default
    for field in dataclasses.fields(entry.module)
    if field.name not in ("parent", "name")
  }
  return fields | entry.fields
