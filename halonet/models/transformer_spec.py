"""What a transformer of stages is made of: its fields, parts and blocks."""

import dataclasses
import functools
from typing import ClassVar

from halonet.fields import MOST_RATIO, MOST_WIDTH, field
from halonet.layers.merging import MERGINGS, Merging
from halonet.layers.stems import STEMS
from halonet.models.parts import BlockSpec, Feature, PartsSpec


@dataclasses.dataclass(frozen=True)
class TransformerSpec(PartsSpec):
  """Fields of a transformer; its parts are operators, stem and merging."""

  kinds: ClassVar[dict[str, dict[str, type]]] = {
    "stem": STEMS,
    "merging": MERGINGS,
  }

  widths: tuple[int, ...] = field(
    (96, 192, 384, 768),
    "Channels of each stage.",
    least=1,
    most=MOST_WIDTH,
  )
  mlp_ratios: tuple[float, ...] = field(
    (4.0,),
    "Width of the MLP's hidden layer over that of the stage, for each stage."
    " The last one serves all further stages.",
    above=0,
    most=MOST_RATIO,
  )
  mlp: str = field(
    "plain",
    "Kind of the MLPs: plain, or conv, with a depthwise 3×3 convolution, as in"
    " PVTv2.",
    choices=("plain", "conv"),
  )
  stem: str = field(
    "embed4",
    "First layers: embed4, patches of 4×4; embed7, overlapping ones of 7×7; or"
    " a stem of the ResNets.",
    choices=tuple(STEMS),
  )
  merging: str = field(
    "linear",
    "What halves the map between stages: linear, as in Swin; conv2, a"
    " convolution of 2×2, as in PVT; conv3, of 3×3, as in PVTv2.",
    choices=tuple(MERGINGS),
  )
  stage_norm: bool = field(
    False, "Whether a norm ends every stage, as in PVTv2, or only the last."
  )
  norm_epsilon: float = field(
    1e-5,
    "Added to the variance in the norms of blocks and those that end stages.",
    above=0,
    most=1,
  )
  position_size: int | None = field(
    None,
    "Side of the images that learned absolute positions, added at the start of"
    " every stage, are made for; they are resized for others. None: there are"
    " none.",
    least=1,
    most=4096,  # Positions of 1024² patches.
  )
  class_token: bool = field(
    False,
    "Whether a learned token that takes part in the last stage is classified,"
    " as in PVT, and not the mean of the map.",
  )

  @property
  def merging_part(self) -> Merging:
    return self.parts["merging"]

  @property
  def stem_features(self) -> int:
    return self.widths[0]

  @functools.cached_property
  def stages(self) -> tuple[tuple[BlockSpec, ...], ...]:
    """The blocks of every stage."""
    return tuple(
      tuple(
        BlockSpec(**place, width=width, stride=1)
        for place in self.places(stage)
      )
      for stage, width in enumerate(self.widths)
    )

  @property
  def feature_info(self) -> tuple[Feature, ...]:
    stride = self.stem_part.stride
    return tuple(
      Feature(f"stage{stage + 1}", width, stride * 2**stage)
      for stage, width in enumerate(self.widths)
    )

  @property
  def final_norm(self) -> bool:
    """Whether there is a norm after the last stage, for the classifier."""
    return bool(self.num_classes) and not self.stage_norm

  def hidden(self, stage: int) -> int:
    """Returns the width of the hidden layers of a stage's MLPs."""
    ratio = self.mlp_ratios[min(stage, len(self.mlp_ratios) - 1)]
    return int(self.widths[stage] * ratio)

  def has_token(self, stage: int) -> bool:
    """Says whether the class token takes part in a stage."""
    return self.class_token and stage == len(self.depths) - 1

  def check_parts(self) -> None:
    if len(self.widths) != len(self.depths):
      raise ValueError(
        f"widths is {self.widths}; it must have one entry per stage, and depths"
        f" is {self.depths}"
      )
    if not 1 <= len(self.mlp_ratios) <= len(self.depths):
      raise ValueError(
        f"mlp_ratios is {self.mlp_ratios}; it must have from 1 to"
        f" {len(self.depths)} entries, as depths is {self.depths}"
      )
    for stage in range(len(self.depths)):
      if not 1 <= self.hidden(stage) <= MOST_WIDTH:
        raise ValueError(
          f"mlp_ratios is {self.mlp_ratios}, by which the MLPs of"
          f" stage{stage + 1} are {self.hidden(stage)} wide; they must be from"
          f" 1 to {MOST_WIDTH}"
        )
    if not self.class_token:
      return
    if self.mlp != "plain":
      raise ValueError(
        f"class_token is True, and mlp {self.mlp!r}, which has no place for a"
        " token; set mlp to 'plain'"
      )
    for block in self.stages[-1]:
      if not self.operator(block).takes_token:
        raise ValueError(
          f"class_token is True, and the last stage has the operator"
          f" {block.operator}, which takes no token; set class_token to False"
        )
