"""HaloNet and its family of local self-attention backbones, in JAX and Flax."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from halonet.data.sources import register as register_source
  from halonet.interop.pretrained import load_pretrained
  from halonet.layers.operators import register as register_operator
  from halonet.models.registry import create_model, list_models
  from halonet.models.registry import register as register_model
  from halonet.tasks.task import register as register_task

__all__ = [
  "create_model",
  "list_models",
  "load_pretrained",
  "register_model",
  "register_operator",
  "register_source",
  "register_task",
]
__version__ = "0.1.0"

# Name → where it is. JAX and Flax are imported with the first of them: every
# command imports this package before it starts anew in huge pages.
_PLACES = {
  "create_model": "halonet.models.registry:create_model",
  "list_models": "halonet.models.registry:list_models",
  "load_pretrained": "halonet.interop.pretrained:load_pretrained",
  "register_model": "halonet.models.registry:register",
  "register_operator": "halonet.layers.operators:register",
  "register_source": "halonet.data.sources:register",
  "register_task": "halonet.tasks.task:register",
}


def __getattr__(name: str) -> Any:
  if name not in _PLACES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module, _, attribute = _PLACES[name].partition(":")
  globals()[name] = value = getattr(importlib.import_module(module), attribute)
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
