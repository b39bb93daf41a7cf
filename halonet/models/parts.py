"""Hosts made of parts: the fields they share, and where their blocks stand."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

from halonet.fields import MOST_CLASSES, Field, field, fields_of
from halonet.layers import operators
from halonet.layers.base import Operator, Stem


@dataclasses.dataclass(frozen=True)
class BlockSpec:
  """A block, with every number resolved.

  Attributes:
    name: name of its module, such as `stage2_block1`.
    stage: number of its stage, from 0.
    index: number of the block in its stage, from 0.
    operator: name of its operator.
    width: channels that the operator receives.
    stride: pixels between neighbouring outputs, 1 or 2.
    drop_path: probability that training skips it, for each example.
  """

  name: str
  stage: int
  index: int
  operator: str
  width: int
  stride: int
  drop_path: float


@dataclasses.dataclass(frozen=True)
class Feature:
  """Output of a stage; `stride` is in input pixels per feature pixel."""

  name: str
  channels: int
  stride: int


@dataclasses.dataclass(frozen=True)
class PartsSpec:
  """Fields that hosts of stages share; base class of their descriptions.

  A subclass is a frozen dataclass with further fields; it makes the blocks of
  every `stages` from `places`.

  Attributes:
    kinds: classes of every further part, by the field that chooses among them.
    options: fields of the parts, as sorted pairs of name and value. The parts
      are the operators and those of `kinds`.
  """

  kinds: ClassVar[Mapping[str, Mapping[str, type]]] = {}

  depths: tuple[int, ...] = field(
    (3, 3, 10, 3),
    "Blocks in each stage (l_i).",
    least=1,
    total=1000,  # ResNet-1202 has 600.
  )
  num_classes: int = field(
    1000,
    "Number of logits; 0: nothing follows the last stage but the pooling, and"
    " pooled features take the place of logits.",
    least=0,
    most=MOST_CLASSES,
  )
  operators: tuple[str, ...] = field(
    ("halo",),
    "Spatial operators of each stage: names joined by commas, a pattern that"
    " repeats over its blocks. The last pattern serves all further stages.",
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
  remat: str = field(
    "none",
    "What the backward pass computes again to need less memory: all but the"
    " output of each stage, or of each block, and of attention kernels.",
    choices=("none", "stage", "block"),
    changeable=True,
  )
  dtype: str = field(
    "float32",
    "Type of the computation. Parameters, statistics of norms, softmax and"
    " logits are float32. float64 needs jax_enable_x64; it is for comparing"
    " gradients with other libraries'.",
    choices=("float32", "bfloat16", "float64"),
  )
  options: tuple[tuple[str, Any], ...] = ()

  @functools.cached_property
  def parts(self) -> dict[str, Any]:
    """The parts by the fields that choose them; operators by their names."""
    return {
      key: cls(
        **{k: v for k, v in self.options if k in fields_of(cls)},
      )
      for key, cls in self.part_classes().items()
    }

  def part_classes(self) -> dict[str, type]:
    """Returns the classes of `parts`."""
    names = dict.fromkeys(itertools.chain(*self.patterns))
    return {f"operator {name}": operators.find(name) for name in names} | {
      kind: classes[getattr(self, kind)] for kind, classes in self.kinds.items()
    }

  @property
  def patterns(self) -> list[list[str]]:
    """Names of the operators in every entry of `operators`."""
    return [pattern.split(",") for pattern in self.operators]

  def operator(self, block: BlockSpec) -> Operator:
    """Returns the operator of a block."""
    return self.parts[f"operator {block.operator}"]

  @property
  def stem_part(self) -> Stem:
    return self.parts["stem"]

  @property
  def stem_features(self) -> int:
    """Channels that the stem puts out."""
    raise NotImplementedError

  @property
  def stages(self) -> tuple[tuple[BlockSpec, ...], ...]:
    """The blocks of every stage."""
    raise NotImplementedError

  @property
  def blocks(self) -> tuple[BlockSpec, ...]:
    """The blocks of all stages."""
    return tuple(itertools.chain(*self.stages))

  @property
  def feature_info(self) -> tuple[Feature, ...]:
    """What `method="features"` returns."""
    raise NotImplementedError

  def places(self, stage: int) -> list[dict[str, Any]]:
    """Returns what the fields here say of every block of a stage.

    Args:
      stage: number of the stage, from 0.

    Returns:
      Attributes of `BlockSpec` by name; width and stride are missing.
    """
    pattern = self.patterns[min(stage, len(self.operators) - 1)]
    before = sum(self.depths[:stage])
    last = max(sum(self.depths) - 1, 1)
    return [
      dict(
        name=f"stage{stage + 1}_block{index + 1}",
        stage=stage,
        index=index,
        operator=pattern[index % len(pattern)],
        drop_path=self.drop_path * (before + index) / last,
      )
      for index in range(self.depths[stage])
    ]

  def check(self) -> None:
    """Raises ValueError unless the fields go together."""
    if not self.depths:
      raise ValueError("depths is (); it must name one or more stages")
    for name in ("dropout", "zero_init_classifier"):
      if getattr(self, name) and not self.num_classes:
        raise ValueError(
          f"{name} is {getattr(self, name)}, and num_classes 0, by which there"
          f" is no classifier; leave {name} out"
        )
    if not 1 <= len(self.operators) <= len(self.depths):
      raise ValueError(
        f"operators is {self.operators}; it must have from 1 to"
        f" {len(self.depths)} patterns, as depths is {self.depths}"
      )
    for part in self.parts.values():
      for name in getattr(part, "per_stage", ()):
        value, default = (
          getattr(part, name),
          fields_of(type(part))[name].default,
        )
        if len(value) != len(self.depths) and (value or default):
          raise ValueError(
            f"{name} is {value}; it must have one entry per stage, and depths"
            f" is {self.depths}"
          )
    self.check_parts()
    self.stem_part.check(self.stem_features)
    for block in self.blocks:
      try:
        self.operator(block).check(block)
      except ValueError as error:
        raise ValueError(f"{block.name}: {error}") from None

  def check_parts(self) -> None:
    """Raises ValueError unless a host's own parts go together."""


def spec_fields(
  cls: type[PartsSpec], chosen: Mapping[str, Any]
) -> dict[str, Field]:
  """Returns all fields of a host with these parts.

  Args:
    cls: its description.
    chosen: values that fields have; only those matter that choose parts. The
      others have their defaults.

  Raises:
    ValueError: if there is no such part.
  """
  own = fields_of(cls)
  structure = {
    name: own[name].check(name, chosen.get(name, own[name].default))
    for name in ("operators", *cls.kinds)
  }
  fields = dict(own)
  for part in cls(**structure).part_classes().values():
    for name, each in fields_of(part).items():
      # Parts share a field. The one that allows most says what is allowed.
      if name not in fields or len(each.choices) > len(fields[name].choices):
        fields[name] = each
  return fields


def make_spec(cls: type[PartsSpec], values: Mapping[str, Any]) -> PartsSpec:
  """Makes the description of a host.

  Args:
    cls: its class.
    values: a value for each of `spec_fields`, checked by its field.

  Raises:
    ValueError: if the values do not go together.
  """
  own = fields_of(cls)
  options = sorted((k, v) for k, v in values.items() if k not in own)
  spec = cls(
    **{k: v for k, v in values.items() if k in own}, options=tuple(options)
  )
  spec.check()
  return spec


def owners(cls: type[PartsSpec], name: str) -> list[str]:
  """Names the parts of a host that have a field, such as "operator halo"."""
  known = {
    f"operator {each}": operators.find(each) for each in operators.names()
  }
  for kind, classes in cls.kinds.items():
    known |= {f"{kind} {each}": part for each, part in classes.items()}
  return [part for part, each in known.items() if name in fields_of(each)]
