"""A registered model within another one, such as a detector's backbone."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Inner(NamedTuple):
  """The model within a model; its trained weights can begin a training.

  A host's modules offer it as an attribute or property `inner`.

  Attributes:
    module: name of the submodule, and of the field that chooses the model, such
      as "backbone".
    name: name of the model in the registry.
    fields: fields of that model that are set, by name.
  """

  module: str
  name: str
  fields: Mapping[str, Any]
