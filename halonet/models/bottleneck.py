"""Bottlenecks: how wide the blocks of a ResNet are, and their shortcuts."""

import dataclasses
from typing import ClassVar

from halonet.fields import MOST_WIDTH, field
from halonet.layers.base import round_to_eight


@dataclasses.dataclass(frozen=True)
class Bottleneck:
  """Blocks of the papers: `1×1 → operator → 1×1` around a shortcut.

  Attributes:
    per_stage: fields that must have one item per stage.
    timm: whether they are of timm's `byobnet.py`.
    activates: whether an activation follows the shortcut.
  """

  per_stage: ClassVar[tuple[str, ...]] = ()
  timm: ClassVar[bool] = False
  activates: ClassVar[bool] = True

  def widths(
    self, stage: int, base_width: int, channels: int, rb: float
  ) -> tuple[int, int]:
    """Returns the channels between the 1×1 convolutions, and those put out.

    Args:
      stage: number of the stage, from 0.
      base_width: width of stage 0.
      channels: channels that the block receives.
      rb: the spec's `rb`.

    Raises:
      ValueError: if there is no such width.
    """
    width = base_width * 2**stage
    if width * rb % 1:
      raise ValueError(
        f"rb is {rb}; rb times {width}, the width of stage{stage + 1}, must be"
        " a whole number"
      )
    return width, round(width * rb)

  def shortcut(self, is_first: bool, changes: bool) -> str:
    """Returns "project", "identity" or "none".

    The first block of each stage projects even where no shape changes; the
    papers' parameter counts ask for it.

    Args:
      is_first: whether the block is the first of its stage.
      changes: whether its output has another shape than its input.
    """
    return "project" if changes or is_first else "identity"


@dataclasses.dataclass(frozen=True)
class TimmBottleneck(Bottleneck):
  """Blocks of timm: shortcuts project only where the shape changes."""

  per_stage = ("out_widths",)
  timm = True

  out_widths: tuple[int, ...] = field(
    (),
    "Channels that the blocks of each stage put out, in place of those by rb.",
    least=1,
    most=MOST_WIDTH,
    kind=tuple[int, ...],
  )

  def widths(
    self, stage: int, base_width: int, channels: int, rb: float
  ) -> tuple[int, int]:
    if self.out_widths:
      return base_width * 2**stage, self.out_widths[stage]
    return super().widths(stage, base_width, channels, rb)

  def shortcut(self, is_first: bool, changes: bool) -> str:
    return "project" if changes else "identity"


@dataclasses.dataclass(frozen=True)
class Inverted(TimmBottleneck):
  """Blocks of RegNet-Z, which widen: rb times as wide as their input.

  No activation follows the shortcut; where the shape changes there is none.
  """

  activates = False

  def widths(
    self, stage: int, base_width: int, channels: int, rb: float
  ) -> tuple[int, int]:
    width = round_to_eight(channels * rb)
    if self.out_widths:
      return width, self.out_widths[stage]
    return width, round(width * rb)

  def shortcut(self, is_first: bool, changes: bool) -> str:
    return "none" if changes else "identity"


BOTTLENECKS = {
  "bottleneck": Bottleneck,
  "timm": TimmBottleneck,
  "inverted": Inverted,
}
