"""HaloNet and its family of local self-attention backbones, in JAX and Flax."""

from halonet.interop.pretrained import load_pretrained
from halonet.layers.operators import register as register_operator
from halonet.models.registry import create_model, list_models
from halonet.models.registry import register as register_model

__all__ = [
  "create_model",
  "list_models",
  "load_pretrained",
  "register_model",
  "register_operator",
]
__version__ = "0.1.0"
