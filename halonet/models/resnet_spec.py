"""What a ResNet is made of: its fields, those of its parts, and its blocks."""

import dataclasses
import functools
from typing import ClassVar

from halonet.fields import MOST_BATCH, MOST_RATIO, MOST_WIDTH, field
from halonet.layers.gates import GATES, Gate
from halonet.layers.stems import STEMS
from halonet.models.bottleneck import BOTTLENECKS, Bottleneck
from halonet.models.parts import BlockSpec, Feature, PartsSpec


@dataclasses.dataclass(frozen=True)
class BottleneckSpec(BlockSpec):
  """A block of a ResNet; its `width` is that between its two 1×1 convolutions.

  Attributes:
    features: channels that it puts out.
    shortcut: "identity", "project" or "none".
  """

  features: int
  shortcut: str


@dataclasses.dataclass(frozen=True)
class ResNetSpec(PartsSpec):
  """Fields of a ResNet; its parts are operators, stem, gate and block type."""

  kinds: ClassVar[dict[str, dict[str, type]]] = {
    "stem": STEMS,
    "block_type": BOTTLENECKS,
    "channel_attention": GATES,
  }

  base_width: int = field(
    64,
    "Width of the operators in stage 1; each further stage doubles it.",
    least=1,
    most=MOST_WIDTH,
  )
  stem_width: int | None = field(
    None, "Width of the stem; base_width if None.", least=1, most=MOST_WIDTH
  )
  rb: float = field(
    1.0,
    "Width of a block's output over that of its operator (r_b).",
    above=0,
    most=MOST_RATIO,
  )
  df: int | None = field(
    None,
    "Width of a 1×1 convolution before the pooling (d_f).",
    least=1,
    most=MOST_WIDTH,
  )
  stem: str = field(
    "conv7",
    "First layers: conv7, a 7×7 convolution; conv3; tiered, three of 3×3;"
    " cifar, a 3×3 convolution for images of 32 pixels; patch4, a"
    " linear projection of 4×4 patches; or SASA's attention within them, with"
    " the values of its table 7.",
    choices=tuple(STEMS),
  )
  block_type: str = field(
    "bottleneck",
    "Widths and shortcuts of the blocks: bottleneck, as in the papers; timm;"
    " or inverted, as in RegNet-Z.",
    choices=tuple(BOTTLENECKS),
  )
  channel_attention: str = field(
    "none",
    "Gate of the channels: se (squeeze-and-excitation) or eca (efficient"
    " channel attention) after the convolution of convolutional blocks, as in"
    " timm; se_all after the operator of every block; se_last at the end of"
    " every block, as in SE-ResNet.",
    choices=tuple(GATES),
  )
  activation: str = field(
    "relu", "Activation function.", choices=("relu", "silu")
  )
  zero_init_residual: bool = field(
    True,
    "Starts every block as its shortcut, by a zero scale in its last batch"
    " norm. The papers do not say; common in ResNets.",
  )
  batch_norm_group: int = field(
    0,
    "Examples over which training takes the statistics of batch norms,"
    " neighbours in the batch; 0: the whole batch, over all devices. The"
    " papers' are those of a TPU core.",
    least=0,
    most=MOST_BATCH,
  )
  batch_norm_momentum: float = field(
    0.9, "Share of the running statistics that a step keeps.", least=0, below=1
  )

  @property
  def stem_features(self) -> int:
    return self.stem_width or self.base_width

  @property
  def gate(self) -> Gate:
    return self.parts["channel_attention"]

  @property
  def bottleneck(self) -> Bottleneck:
    return self.parts["block_type"]

  @functools.cached_property
  def stages(self) -> tuple[tuple[BottleneckSpec, ...], ...]:
    """The blocks of every stage."""
    channels = self.stem_features
    stages = []
    for stage in range(len(self.depths)):
      blocks = []
      for place in self.places(stage):
        first = place["index"] == 0
        strided = first and (stage > 0 or self.stem_part.stage_stride == 2)
        width, features = self.bottleneck.widths(
          stage, self.base_width, channels, self.rb
        )
        if max(width, features) > MOST_WIDTH:
          raise ValueError(
            f"depths is {self.depths}, base_width {self.base_width} and rb"
            f" {self.rb}, by which {place['name']} has {max(width, features)}"
            f" channels; there may be at most {MOST_WIDTH}"
          )
        changes = strided or channels != features
        blocks.append(
          BottleneckSpec(
            **place,
            width=width,
            features=features,
            stride=2 if strided else 1,
            shortcut=self.bottleneck.shortcut(first, changes),
          )
        )
        channels = features
      stages.append(tuple(blocks))
    return tuple(stages)

  @property
  def feature_info(self) -> tuple[Feature, ...]:
    stride = self.stem_part.stride
    info = []
    for number, stage in enumerate(self.stages, start=1):
      stride *= stage[0].stride
      info.append(Feature(f"stage{number}", stage[-1].features, stride))
    return tuple(info)

  def check_parts(self) -> None:
    if self.gate.place == "conv" and not any(
      self.operator(block).name == "conv" for block in self.blocks
    ):
      raise ValueError(
        f"channel_attention is {self.channel_attention!r}, which follows"
        f" convolutions; operators is {self.operators}"
      )
