"""Models by name."""

import dataclasses
import fnmatch
import typing
from collections.abc import Mapping
from typing import Any, ClassVar

from flax import linen as nn

from halonet.errors import unknown
from halonet.fields import Field, is_kind
from halonet.models.backbone import Backbone
from halonet.models.halonet import HALONETS
from halonet.models.pvt import PVT_V2S, PVTS
from halonet.models.resnet import ResNet
from halonet.models.resnets import RESNETS
from halonet.models.retinanet import RETINANETS, RetinaNet
from halonet.models.sasa import SASAS
from halonet.models.slide_transformers import SLIDES
from halonet.models.swin import SWINS
from halonet.models.timm_models import TIMM_MODELS, TIMM_SWINS
from halonet.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class ModelEntry:
  """How a name becomes a model.

  Attributes:
    host: class or object that makes it; see `register`.
    image_size: side in pixels of the square images that the source uses.
    fields: fields that the name sets; the others keep their defaults.
  """

  host: Any
  image_size: int
  fields: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Over:
  """A host over the stages of another model, which its field `backbone` names.

  Its fields are its own and those of the backbone, which share what both have,
  such as `dtype`. What only a classifier has is left out.

  Attributes:
    module: class of the host, with `own_fields` and `over`.
  """

  CLASSIFIER: ClassVar[tuple[str, ...]] = (
    "df",
    "dropout",
    "num_classes",
    "zero_init_classifier",
  )

  module: Any

  def fields(self, chosen: Mapping[str, Any]) -> dict[str, Field]:
    """Returns the fields where `chosen` are set; see `register`."""
    own = self.module.own_fields(chosen)
    return self._backbone_fields(own, chosen) | own

  def make(self, **values: Any) -> nn.Module:
    """Makes a model of checked values for all `fields`."""
    own = self.module.own_fields(values)
    backbone = create_model(
      values["backbone"],
      num_classes=0,
      **{k: values[k] for k in self._backbone_fields(own, values)},
    )
    return self.module.over(backbone, {k: values[k] for k in own})

  def _backbone_fields(self, own, chosen):
    name = own["backbone"].check(
      "backbone", chosen.get("backbone", own["backbone"].default)
    )
    if name not in _MODELS:
      raise ValueError(f"backbone: {unknown('model', name, _MODELS)}")
    host = _MODELS[name].host
    if not (isinstance(host, type) and issubclass(host, Backbone)):
      raise ValueError(
        f"backbone is {name}, which has no stages; take a classifier, such as"
        " resnet50"
      )
    theirs = model_fields(
      name,
      {k: v for k, v in chosen.items() if k not in ("backbone", "num_classes")},
    )
    return {k: v for k, v in theirs.items() if k not in self.CLASSIFIER}


# A host and a table of its models, on each line.
_HOSTS = (
  (ResNet, HALONETS),
  (ResNet, RESNETS),
  (ResNet, SASAS),
  (ResNet, TIMM_MODELS),
  (Transformer, SWINS),
  (Transformer, TIMM_SWINS),
  (Transformer, PVTS),
  (Transformer, PVT_V2S),
  (Transformer, SLIDES),
  (Over(RetinaNet), RETINANETS),
)

_MODELS = {
  name: ModelEntry(host, image_size, fields)
  for host, table in _HOSTS
  for name, (image_size, fields) in table.items()
}


def register(
  name: str, host: Any, image_size: int = 224, **fields: Any
) -> None:
  """Makes a model known.

  Args:
    name: name for `create_model`.
    host: a Flax module class whose attributes are the model's fields, declared
      by `halonet.fields.field` or by a type and a default. Or an object with
      `fields(chosen) -> dict[str, Field]`, the fields where `chosen` are set,
      and `make(**values)`, which gets a value for each. Its modules have
      `__call__(images, train=False)`, and may have
        `features(images, train=False)`, outputs of the stages by name;
        `window`, the side in pixels of what a query sees, or None;
        `adapt(path, array, shape, source)`, as `Backbone.adapt`;
        `inner`, the registered model that is a part of it, as an `Inner` of
        `halonet.models.inner`.
    image_size: side in pixels of its images.
    **fields: values of the host's fields, in place of their defaults.

  Raises:
    ValueError: if the name is another model's, or there is no such field.
  """
  entry = ModelEntry(host, image_size, fields)
  if _MODELS.get(name, entry) != entry:
    raise ValueError(f"there is already a model {name}")
  known = _host_fields(host, fields)
  for each in fields:
    if each not in known:
      raise ValueError(unknown(f"field of {name},", each, known))
  _MODELS[name] = entry


def create_model(name: str, **overrides: Any) -> nn.Module:
  """Makes a model by its name.

  Args:
    name: one of `list_models()`.
    **overrides: fields to set, such as `num_classes=10`, `block_size=4`,
      `dtype="bfloat16"`; `model_fields` describes them all.

  Returns:
    A Flax Linen module: `model.init(key, images)`, `model.apply(variables,
    images, train=False)` → outputs; `method="features"` → stage outputs.

  Raises:
    ValueError: if there is no such model or field, or a value is impossible.
  """
  host = get_entry(name).host
  known = model_fields(name, overrides)
  for each in overrides:
    if each not in known:
      owners = getattr(host, "owners", lambda _: [])(each)
      raise ValueError(
        unknown(f"field of {name},", each, known)
        + (f" ({each} belongs to {', '.join(owners)})" if owners else "")
      )
  values = {
    each: described.check(each, overrides.get(each, described.default))
    for each, described in known.items()
  }
  return host.make(**values) if hasattr(host, "make") else host(**values)


def list_models(pattern: str = "*") -> list[str]:
  """Returns the names that match a shell-style pattern, sorted."""
  return sorted(fnmatch.filter(_MODELS, pattern))


def get_entry(name: str) -> ModelEntry:
  """Looks a name up; raises ValueError with the known names if it is none."""
  if name not in _MODELS:
    raise ValueError(unknown("model", name, _MODELS))
  return _MODELS[name]


def model_fields(
  name: str, chosen: Mapping[str, Any] | None = None
) -> dict[str, Field]:
  """Returns every field of a model that can be set.

  Args:
    name: one of `list_models()`.
    chosen: values that will be set. Only those matter that decide what other
      fields there are, such as operators or stem.

  Returns:
    Descriptions by name; their defaults are those of the model's name.

  Raises:
    ValueError: if there is no such model, or no such part.
  """
  entry = get_entry(name)
  return {
    each: dataclasses.replace(
      described, default=entry.fields.get(each, described.default)
    )
    for each, described in _host_fields(
      entry.host, {**entry.fields, **(chosen or {})}
    ).items()
  }


def _host_fields(host, chosen):
  if hasattr(host, "make"):
    return host.fields(chosen)
  kinds = typing.get_type_hints(host)
  return {
    each.name: dataclasses.replace(
      each.metadata.get("field", Field(each.default, kind=kinds[each.name])),
      kind=kinds[each.name],
    )
    for each in dataclasses.fields(host)
    if each.name not in ("parent", "name")
    and ("field" in each.metadata or is_kind(kinds[each.name]))
  }
