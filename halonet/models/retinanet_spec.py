"""What a RetinaNet is made of: its fields, beside those of its backbone."""

import dataclasses

from halonet.fields import (
  MOST_BATCH,
  MOST_CLASSES,
  MOST_RATIO,
  MOST_WIDTH,
  field,
)
from halonet.layers.halo import BLOCKED_IMPLEMENTATIONS
from halonet.models.fpn import HEADS, SPATIAL
from halonet.ops.anchors import RATIOS


@dataclasses.dataclass(frozen=True)
class RetinaNetSpec:
  """Fields of a RetinaNet, beside those of its backbone."""

  backbone: str = field(
    "resnet50",
    "Model whose stages the detector looks at. Its fields are the detector's,"
    " too.",
  )
  num_classes: int = field(
    90,
    "Number of classes, without background. COCO's ids go up to 90.",
    least=1,
    most=MOST_CLASSES,
  )
  levels: tuple[int, ...] = field(
    (3, 7),
    "First and last level of the feature pyramid; a pixel of level l is 2^l"
    " pixels of the image wide.",
    least=1,
    most=12,
    length=2,
  )
  fpn_width: int = field(
    256,
    "Channels of the feature pyramid and the heads.",
    least=1,
    most=MOST_WIDTH,
  )
  head_depth: int = field(
    4, "Layers of each head before its last.", least=0, most=100
  )
  fpn_operator: str = field(
    "conv",
    "What the feature pyramid does in space: conv, 3×3 convolutions; or"
    " per_pixel, SASA's attention. SASA's text replaces these convolutions as"
    " well as the heads'; its counts ask for convolutions here.",
    choices=SPATIAL,
  )
  head_operator: str = field(
    "conv",
    "What the heads do in space: conv, 3×3 convolutions; or per_pixel, SASA's"
    " attention, with a 1×1 convolution at the end.",
    choices=SPATIAL,
  )
  anchor_scales: int = field(
    2, "Sizes of anchors in an octave.", least=1, most=16
  )
  anchor_ratios: tuple[float, ...] = field(
    RATIOS,
    "Widths of anchors over their heights.",
    above=0,
    most=MOST_RATIO,
  )
  anchor_size: float = field(
    4.0,
    "Side of the smallest square anchor in pixels of its level.",
    above=0,
    most=MOST_RATIO,
  )
  attention_implementation: str = field(
    "auto",
    "Form of the attention; attention in blocks takes direct for xla. It"
    " changes no parameter; docs/attention.md explains the forms.",
    choices=(*BLOCKED_IMPLEMENTATIONS, "direct"),
  )
  batch_norm_group: int = field(
    0,
    "Examples over which training takes the statistics of batch norms,"
    " neighbours in the batch; 0: the whole batch, over all devices.",
    least=0,
    most=MOST_BATCH,
  )
  batch_norm_momentum: float = field(
    0.9, "Share of the running statistics that a step keeps.", least=0, below=1
  )
  remat: str = field(
    "none",
    "What the backward pass computes again to need less memory: all but the"
    " output of each stage and head, or of each block and layer of a head.",
    choices=("none", "stage", "block"),
    changeable=True,
  )
  dtype: str = field(
    "float32",
    "Type of the computation. Parameters, statistics of norms, softmax and the"
    " last layers are float32.",
    choices=("float32", "bfloat16", "float64"),
  )

  @property
  def attends(self) -> bool:
    """Whether the detector itself has attention."""
    return "per_pixel" in (self.fpn_operator, self.head_operator)

  @property
  def places(self) -> int:
    """Anchors around each pixel."""
    return self.anchor_scales * len(self.anchor_ratios)

  def check(self) -> None:
    """Raises ValueError unless the fields go together."""
    if not self.anchor_ratios:
      raise ValueError("anchor_ratios is (); it must name one or more")
    if self.attends and self.fpn_width % (2 * HEADS):
      raise ValueError(
        f"fpn_width is {self.fpn_width}; the {HEADS} heads of the attention ask"
        f" for a multiple of {2 * HEADS}"
      )
