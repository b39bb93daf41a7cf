"""HaloNet and its family of local self-attention backbones, in JAX and Flax."""

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
