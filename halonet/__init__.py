"""HaloNet and its family of local self-attention backbones, in JAX and Flax."""

from halonet.interop.pretrained import load_pretrained
from halonet.models.registry import create_model, list_models

__all__ = ["create_model", "list_models", "load_pretrained"]
__version__ = "0.1.0"
