"""Models by name."""

import dataclasses
import fnmatch
from typing import Any

from halonet.errors import unknown
from halonet.models.halonet import HALONETS
from halonet.models.network import Network
from halonet.models.resnet import RESNETS
from halonet.models.sasa import SASAS
from halonet.models.spec import NetworkSpec
from halonet.models.timm_models import TIMM_MODELS


@dataclasses.dataclass(frozen=True)
class Entry:
  """How a name becomes a model.

  Attributes:
    image_size: side in pixels of the square images that the source uses.
    fields: the fields that the name sets; the others keep their defaults.
  """

  image_size: int
  fields: dict[str, Any]


_MODELS = {
  name: Entry(image_size, fields)
  for name, (image_size, fields) in (
    HALONETS | RESNETS | SASAS | TIMM_MODELS
  ).items()
}


def create_model(name: str, **overrides: Any) -> Network:
  """Makes a model by its name.

  Args:
    name: one of `list_models()`.
    **overrides: fields to set, such as `num_classes=10`, `block_size=4`,
      `dtype="bfloat16"`; `halonet.models.spec.NetworkSpec` documents them all.

  Returns:
    A Flax Linen module: `model.init(key, images)`, `model.apply(variables,
    images, train=False)` → logits; `method="features"` → stage outputs.

  Raises:
    ValueError: if there is no such model or field, or a value is impossible.
  """
  known = model_fields(name)
  for field in overrides:
    if field not in known:
      raise ValueError(unknown(f"field of {name},", field, known))
  return Network(NetworkSpec(**(known | overrides)))


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
  defaults = {
    field.name: field.default for field in dataclasses.fields(NetworkSpec)
  }
  return defaults | get_entry(name).fields
