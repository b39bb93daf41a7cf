"""Operators by name."""

from halonet.errors import unknown
from halonet.layers.base import Operator
from halonet.layers.convolution import Convolution
from halonet.layers.global_attention import Global
from halonet.layers.halo import Halo
from halonet.layers.lambda_layer import Lambda
from halonet.layers.per_pixel import PerPixel
from halonet.layers.slide import Slide
from halonet.layers.spatial_reduction import SpatialReduction
from halonet.layers.timm_halo import TimmHalo
from halonet.layers.window import Window

_OPERATORS: dict[str, type[Operator]] = {
  "conv": Convolution,
  "halo": Halo,
  "per_pixel": PerPixel,
  "global": Global,
  "lambda": Lambda,
  "slide": Slide,
  "timm_halo": TimmHalo,
  "window": Window,
  "spatial_reduction": SpatialReduction,
}


def register(name: str, operator: type[Operator]) -> None:
  """Makes an operator known; see `halonet.layers.base.Operator`.

  Raises:
    ValueError: if another class has the name, or the name holds a comma.
  """
  if _OPERATORS.get(name, operator) is not operator or "," in name:
    raise ValueError(f"operator {name!r}: the name is taken, or has a comma")
  _OPERATORS[name] = operator


def find(name: str) -> type[Operator]:
  """Looks an operator up; raises ValueError with the known names."""
  if name not in _OPERATORS:
    raise ValueError(unknown("operator", name, _OPERATORS))
  return _OPERATORS[name]


def names() -> list[str]:
  """Returns the names of all operators."""
  return list(_OPERATORS)
