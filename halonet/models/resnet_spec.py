"""What a ResNet is made of: its fields, those of its parts, and its blocks."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

from halonet.fields import (
  MOST_BATCH,
  MOST_CLASSES,
  MOST_RATIO,
  MOST_WIDTH,
  Field,
  field,
  fields_of,
)
from halonet.layers import operators
from halonet.layers.base import Operator, Stem
from halonet.layers.gates import GATES, Gate
from halonet.layers.stems import STEMS
from halonet.models.bottleneck import BOTTLENECKS, Bottleneck


@dataclasses.dataclass(frozen=True)
class BlockSpec:
  """A block, with every number resolved.

  Attributes:
    name: name of its module, such as `stage2_block1`.
    stage: number of its stage, from 0.
    operator: name of its operator.
    width: channels between its two 1×1 convolutions.
    features: channels that it puts out.
    stride: 1 or 2.
    shortcut: "identity", "project" or "none".
    drop_path: probability that training skips it, for each example.
  """

  name: str
  stage: int
  operator: str
  width: int
  features: int
  stride: int
  shortcut: str
  drop_path: float


@dataclasses.dataclass(frozen=True)
class Feature:
  """Output of a stage; `stride` is in input pixels per feature pixel."""

  name: str
  channels: int
  stride: int


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
  """Fields of a ResNet, made by `make_spec`.

  Attributes:
    options: fields of its parts, as sorted pairs of name and value. The
      parts are its operators, stem, gate and block type.
  """

  depths: tuple[int, ...] = field(
    (3, 3, 10, 3),
    "Blocks in each stage (l_i).",
    least=1,
    total=1000,  # ResNet-1202 has 600.
  )
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
  num_classes: int = field(
    1000, "Number of logits.", least=1, most=MOST_CLASSES
  )
  operators: tuple[str, ...] = field(
    ("halo",),
    "Spatial operators of each stage: names joined by commas, a pattern that"
    " repeats over its blocks. The last pattern serves all further stages.",
  )
  stem: str = field(
    "conv7",
    "First layers: conv7, a 7×7 convolution; conv3; tiered, three of 3×3;"
    " patch4, a linear projection of 4×4 patches; or SASA's attention within"
    " them, with the values of its table 7.",
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
  zero_init_classifier: bool = field(
    False,
    "Starts the classifier at zero, as HaloNet's fine-tuning does (table 6).",
  )
  drop_path: float = field(
    0.0,
    "Probability that training skips the last block (stochastic depth); that"
    " of the others falls linearly to 0 at the first.",
    least=0,
    below=1,
  )
  dropout: float = field(
    0.0,
    "Probability that training drops a feature of the classifier.",
    least=0,
    below=1,
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
  remat: str = field(
    "none",
    "What the backward pass computes again to need less memory: all but the"
    " output of each stage, or of each block.",
    choices=("none", "stage", "block"),
    changeable=True,
  )
  dtype: str = field(
    "float32",
    "Of the computation. Parameters, batch-norm statistics, softmax and logits"
    " are float32. float64 needs jax_enable_x64; it is for comparing gradients"
    " with other libraries'.",
    choices=("float32", "bfloat16", "float64"),
  )
  options: tuple[tuple[str, Any], ...] = ()

  @functools.cached_property
  def parts(self) -> dict[str, Any]:
    """The stem, the gate, the block type, and each operator by its name."""
    return {
      key: cls(
        **{k: v for k, v in self.options if k in fields_of(cls)},
      )
      for key, cls in _part_classes(self).items()
    }

  def operator(self, block: BlockSpec) -> Operator:
    """Returns the operator of a block."""
    return self.parts[f"operator {block.operator}"]

  @property
  def stem_part(self) -> Stem:
    return self.parts["stem"]

  @property
  def gate(self) -> Gate:
    return self.parts["channel_attention"]

  @property
  def bottleneck(self) -> Bottleneck:
    return self.parts["block_type"]

  @functools.cached_property
  def stages(self) -> tuple[tuple[BlockSpec, ...], ...]:
    """The blocks of every stage."""
    patterns = _patterns(self.operators)
    channels = self.stem_width or self.base_width
    count = itertools.count()
    stages = []
    for stage, depth in enumerate(self.depths):
      pattern = patterns[min(stage, len(patterns) - 1)]
      blocks = []
      for block in range(depth):
        # The first stage has no stride of its own after a stem of four.
        strided = block == 0 and (stage > 0 or self.stem_part.stride == 2)
        width, features = self.bottleneck.widths(
          stage, self.base_width, channels, self.rb
        )
        name = f"stage{stage + 1}_block{block + 1}"
        if max(width, features) > MOST_WIDTH:
          raise ValueError(
            f"depths is {self.depths}, base_width {self.base_width} and rb"
            f" {self.rb}, by which {name} has {max(width, features)} channels;"
            f" there may be at most {MOST_WIDTH}"
          )
        changes = strided or channels != features
        share = next(count) / max(sum(self.depths) - 1, 1)
        blocks.append(
          BlockSpec(
            name=name,
            stage=stage,
            operator=pattern[block % len(pattern)],
            width=width,
            features=features,
            stride=2 if strided else 1,
            shortcut=self.bottleneck.shortcut(block == 0, changes),
            drop_path=self.drop_path * share,
          )
        )
        channels = features
      stages.append(tuple(blocks))
    return tuple(stages)

  @property
  def blocks(self) -> tuple[BlockSpec, ...]:
    """The blocks of all stages."""
    return tuple(itertools.chain(*self.stages))

  @property
  def feature_info(self) -> tuple[Feature, ...]:
    """What `method="features"` returns."""
    stride = self.stem_part.stride
    info = []
    for number, stage in enumerate(self.stages, start=1):
      stride *= stage[0].stride
      info.append(Feature(f"stage{number}", stage[-1].features, stride))
    return tuple(info)


def spec_fields(chosen: Mapping[str, Any]) -> dict[str, Field]:
  """Returns all fields of the ResNet with these parts.

  Args:
    chosen: values that fields have; only operators, stem, block_type and
      channel_attention matter. The others have their defaults.

  Raises:
    ValueError: if there is no such part.
  """
  own = fields_of(ResNetSpec)
  structure = {
    name: own[name].check(name, chosen.get(name, own[name].default))
    for name in ("operators", *_PARTS)
  }
  fields = dict(own)
  for cls in _part_classes(ResNetSpec(**structure)).values():
    for name, each in fields_of(cls).items():
      # Parts share a field. The one that allows most says what is allowed.
      if name not in fields or len(each.choices) > len(fields[name].choices):
        fields[name] = each
  return fields


def make_spec(values: Mapping[str, Any]) -> ResNetSpec:
  """Makes the description of a ResNet.

  Args:
    values: a value for each of `spec_fields`, checked by its field.

  Raises:
    ValueError: if the values do not go together.
  """
  own = fields_of(ResNetSpec)
  options = sorted((k, v) for k, v in values.items() if k not in own)
  spec = ResNetSpec(
    **{k: v for k, v in values.items() if k in own}, options=tuple(options)
  )
  _check(spec)
  return spec


def owners(name: str) -> list[str]:
  """Names the parts that have a field, such as "operator halo"."""
  known = {
    f"operator {each}": operators.find(each) for each in operators.names()
  }
  for kind, classes in _PARTS.items():
    known |= {f"{kind} {each}": cls for each, cls in classes.items()}
  return [part for part, cls in known.items() if name in fields_of(cls)]


_PARTS = {
  "stem": STEMS,
  "block_type": BOTTLENECKS,
  "channel_attention": GATES,
}


def _patterns(value):
  return [pattern.split(",") for pattern in value]


def _part_classes(spec):
  names = dict.fromkeys(itertools.chain(*_patterns(spec.operators)))
  return {f"operator {name}": operators.find(name) for name in names} | {
    kind: classes[getattr(spec, kind)] for kind, classes in _PARTS.items()
  }


def _check(spec):
  if not spec.depths:
    raise ValueError("depths is (); it must name one or more stages")
  if not 1 <= len(spec.operators) <= len(spec.depths):
    raise ValueError(
      f"operators is {spec.operators}; it must have from 1 to"
      f" {len(spec.depths)} patterns, as depths is {spec.depths}"
    )
  for part in spec.parts.values():
    for name in getattr(part, "per_stage", ()):
      value, default = getattr(part, name), fields_of(type(part))[name].default
      if len(value) != len(spec.depths) and (value or default):
        raise ValueError(
          f"{name} is {value}; it must have one entry per stage, and depths is"
          f" {spec.depths}"
        )
  if spec.gate.place == "conv" and not any(
    spec.operator(block).name == "conv" for block in spec.blocks
  ):
    raise ValueError(
      f"channel_attention is {spec.channel_attention!r}, which follows"
      f" convolutions; operators is {spec.operators}"
    )
  spec.stem_part.check(spec.stem_width or spec.base_width)
  for block in spec.blocks:
    try:
      spec.operator(block).check(block)
    except ValueError as error:
      raise ValueError(f"{block.name}: {error}") from None
