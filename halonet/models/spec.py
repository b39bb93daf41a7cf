"""The one description of a network that all models are rows of.

A row of fields in the tables of `halonet.py`, `resnet.py`, `sasa.py` and
`timm_models.py` becomes a `NetworkSpec`, and this module resolves it into
stages of blocks; `network.py` runs them. Every block is a bottleneck, `1×1 →
spatial operator → 1×1` around a shortcut, and the operators mix freely.
"""

import dataclasses
import itertools

from halonet.models.typed import typed
from halonet.ops.arguments import check_count
from halonet.ops.dispatch import IMPLEMENTATIONS

STEMS = (
  "conv7",
  "conv3",
  "tiered",
  "patch4",
  "attention",
  "attention_linear",
  "attention_conv",
)
OPERATORS = ("c", "h", "p", "g")
POSITIONS = ("relative", "absolute", "none")
ACTIVATIONS = ("relu", "silu")
CHANNEL_ATTENTIONS = ("none", "se", "se_last", "eca")
REMATS = ("none", "stage", "block")
DTYPES = ("float32", "bfloat16", "float64")


@dataclasses.dataclass(frozen=True)
class BlockSpec:
  """One block, with every number resolved.

  Attributes:
    name: of its module, such as `stage2_block1`.
    operator: a letter of `NetworkSpec.operators`.
    width: channels between the two 1×1 convolutions.
    qk_width: channels of all queries of its attention together.
    value_width: channels of all values together.
    features: channels that it puts out.
    stride: 1 or 2.
    heads: of its attention.
    shortcut: "identity", "project" or "none".
    drop_path: probability that training skips it, for each example.
  """

  name: str
  operator: str
  width: int
  qk_width: int
  value_width: int
  features: int
  stride: int
  heads: int
  shortcut: str
  drop_path: float


@dataclasses.dataclass(frozen=True)
class Feature:
  """A stage's output; `stride` is in input pixels per feature pixel."""

  name: str
  channels: int
  stride: int


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
  """Every number and name that makes a network.

  Attributes:
    block_size: side of an attention block in pixels (b).
    halo_size: width of the halo in pixels (h).
    rv: width of the values over that of the queries (r_v).
    rb: width of a block's output over that of the queries (r_b).
    depths: blocks in each stage (l_i).
    heads: attention heads of each stage. The paper does not say; (4, 8, 8, 8)
      is from a secondary source.
    base_width: width of the stem, and of the queries in stage 1; each further
      stage doubles it.
    df: width of a 1×1 convolution before the pooling (d_f), or None.
    num_classes: number of logits.
    operators: spatial operators of each stage, a pattern that repeats over its
      blocks: "c" is a 3×3 convolution, "h" blocked local (halo) attention, "p"
      per-pixel local attention (SASA), "g" global attention; "ch" alternates,
      from a convolution on. The last pattern serves all further stages.
    stem: "conv7", a 7×7 convolution of stride 2; "conv3", a 3×3 one; "tiered",
      three of 3×3; "patch4", a linear projection of 4×4 patches; "attention",
      SASA's attention within 4×4 patches, and with the other values of its
      table 7 "attention_linear" and "attention_conv".
    stem_pool: whether a 3×3 max pool of stride 2 ends the stem. Without it,
      the last convolution of "tiered" has a stride of 2. Stems of attention
      always end in their 4×4 max pool.
    activation: "relu" or "silu".
    channel_attention: "se" (squeeze-and-excitation) or "eca" (efficient
      channel attention) after the convolution of convolutional blocks, as in
      timm; "se_last", at the end of every block, as in SE-ResNet; or "none".
    se_ratio: width of the squeeze over that of its input.
    group_width: channels per group of the 3×3 convolutions; 0: one group.
    qk_ratio: width of queries and keys over the block's width.
    qk_head_dim: width of a head's queries, in place of `qk_ratio`; or None.
    project_first: whether the first block of a stage has a layer in its
      shortcut even where no shape changes; the paper's counts ask for it.
    inverted: blocks widen, as in RegNet-Z: a block is `rb` times as wide as its
      input, has no activation after the shortcut, and no shortcut at all
      where the shape changes.
    out_widths: channels that the blocks of each stage put out, where `rb` does
      not say; or ().
    timm: attention in timm's way, for its weights; see
      `halonet.models.layers.HaloAttention`.
    window_size: side of the window of per-pixel attention in pixels (k).
    position: of per-pixel attention: "relative", "absolute" or "none"; see
      `halonet.models.per_pixel.PerPixelAttention`.
    content: whether the keys of per-pixel attention take part in its logits,
      beside the relative positions.
    mask_padding: leaves keys beyond the border out of the softmax. The papers
      do not say; masking is our choice.
    mask_window: lets a query see only keys at most `halo_size` pixels away,
      the comparison with SASA of figure 6.
    attention_implementation: of the operators "h" and "p": "auto", "xla",
      "xla_chunked", "xla_packed", "pallas_tpu" or "pallas_gpu", as
      `halonet.ops.attention.blocked_local_attention` explains them; or
      "direct", as `per_pixel_attention` there does, where the network has a
      "p", and "xla" for all else. It changes no parameters.
    global_size: side of the maps that the tables of global attention are made
      for; for other maps they are resized.
    zero_init_residual: starts every block as its shortcut, by a zero scale in
      its last batch norm. The paper does not say; common in ResNets.
    drop_path: probability that training skips the last block (stochastic
      depth); that of the others falls linearly to 0 at the first, which is
      never skipped.
    dropout: probability that training drops a feature of the classifier.
    batch_norm_group: examples over which training takes the statistics of
      batch norms, neighbours in the batch; 0: the whole batch, over all
      devices. The papers' are those of a TPU core.
    batch_norm_momentum: share of the running statistics that a step keeps.
    remat: what the backward pass computes a second time, to need less memory:
      "none", all but the output of each "stage", or of each "block".
    dtype: "float32" or "bfloat16", of the computation. Parameters, batch-norm
      statistics, softmax and logits are float32. ("float64", with
      `jax_enable_x64`, is for comparing gradients with other libraries'.)

  Raises:
    ValueError: when made, if a field is out of range.
  """

  block_size: int = 8
  halo_size: int = 3
  rv: float = 1.0
  rb: float = 1.0
  depths: tuple[int, ...] = (3, 3, 10, 3)
  heads: tuple[int, ...] = (4, 8, 8, 8)
  base_width: int = 64
  df: int | None = None
  num_classes: int = 1000
  operators: tuple[str, ...] = ("h",)
  stem: str = "conv7"
  stem_pool: bool = True
  activation: str = "relu"
  channel_attention: str = "none"
  se_ratio: float = 1 / 16
  group_width: int = 0
  qk_ratio: float = 1.0
  qk_head_dim: int | None = None
  project_first: bool = True
  inverted: bool = False
  out_widths: tuple[int, ...] = ()
  timm: bool = False
  window_size: int = 7
  position: str = "relative"
  content: bool = True
  mask_padding: bool = True
  mask_window: bool = False
  attention_implementation: str = "auto"
  global_size: int = 8
  zero_init_residual: bool = True
  drop_path: float = 0.0
  dropout: float = 0.0
  batch_norm_group: int = 0
  batch_norm_momentum: float = 0.9
  remat: str = "none"
  dtype: str = "float32"

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = typed(field.name, getattr(self, field.name), field.type)
      # Frozen, but a list becomes a tuple, and 1 becomes 1.0.
      object.__setattr__(self, field.name, value)
    _check(self)

  @property
  def stem_stride(self) -> int:
    """Input pixels per pixel of the stem's output."""
    # These two halve the map once by themselves; the others always reach 4.
    return 2 if self.stem in ("conv3", "conv7") and not self.stem_pool else 4

  @property
  def stages(self) -> tuple[tuple[BlockSpec, ...], ...]:
    """The blocks of every stage, resolved."""
    channels = self.base_width
    count = itertools.count()
    stages = []
    for stage, depth in enumerate(self.depths):
      pattern = self.operators[min(stage, len(self.operators) - 1)]
      blocks = []
      for block in range(depth):
        # The first stage has no stride of its own after a stem of four.
        strided = block == 0 and (stage > 0 or self.stem_stride == 2)
        share = next(count) / max(sum(self.depths) - 1, 1)
        spec = self._block(
          stage,
          block,
          channels,
          pattern[block % len(pattern)],
          stride=2 if strided else 1,
          drop_path=self.drop_path * share,
        )
        blocks.append(spec)
        channels = spec.features
      stages.append(tuple(blocks))
    return tuple(stages)

  @property
  def feature_info(self) -> tuple[Feature, ...]:
    """What `method="features"` gives."""
    stride = self.stem_stride
    info = []
    for number, stage in enumerate(self.stages, start=1):
      stride *= stage[0].stride
      info.append(Feature(f"stage{number}", stage[-1].features, stride))
    return tuple(info)

  def _block(self, stage, block, channels, operator, stride, drop_path):
    if self.inverted:
      width = round_to_eight(channels * self.rb)
    else:
      width = self.base_width * 2**stage
    features = (
      self.out_widths[stage] if self.out_widths else round(width * self.rb)
    )
    heads = self.heads[stage]
    if self.qk_head_dim:
      qk_width = self.qk_head_dim * heads
    elif self.qk_ratio == 1:
      qk_width = width
    else:
      qk_width = round_to_eight(width * self.qk_ratio) // heads * heads
    changes = stride > 1 or channels != features
    if changes or (block == 0 and self.project_first):
      shortcut = "none" if self.inverted else "project"
    else:
      shortcut = "identity"
    return BlockSpec(
      name=f"stage{stage + 1}_block{block + 1}",
      operator=operator,
      width=width,
      qk_width=qk_width,
      value_width=round(width * self.rv),
      features=features,
      stride=stride,
      heads=heads,
      shortcut=shortcut,
      drop_path=drop_path,
    )


def round_to_eight(width: float) -> int:
  """The nearest multiple of eight that is no more than a tenth below."""
  rounded = max(8, int(width + 4) // 8 * 8)
  return rounded if rounded >= 0.9 * width else rounded + 8


def check_heads(
  heads: int, qk_width: int, value_width: int, half_tables: bool = True
) -> None:
  """Raises ValueError unless both widths split evenly over the heads.

  With `half_tables` a head's query must split once more: half of it meets the
  row table, half the column table.
  """
  if heads < 1:
    raise ValueError(f"heads is {heads}; it must be at least 1")
  if (
    qk_width < heads
    or qk_width % heads
    or (half_tables and qk_width // heads % 2)
  ):
    even = " to an even width per head" if half_tables else ""
    raise ValueError(
      f"heads is {heads}, which does not divide the query width {qk_width}"
      f"{even}"
    )
  if value_width % heads:
    raise ValueError(
      f"heads is {heads}, which does not divide the value width {value_width}"
    )


def check_per_pixel(window_size: int, position: str, content: bool) -> None:
  """Raises ValueError unless per-pixel attention can be so."""
  check_count("window_size", window_size)
  if position not in POSITIONS:
    raise ValueError(f"position is {position!r}; it must be one of {POSITIONS}")
  if not content and position != "relative":
    raise ValueError(
      f"content is False and position {position!r}: nothing is left to attend"
      " by; without content it must be 'relative'"
    )


def _check(network: NetworkSpec) -> None:
  for name, least in (
    ("block_size", 1),
    ("halo_size", 0),
    ("base_width", 1),
    ("num_classes", 1),
    ("group_width", 0),
    ("global_size", 1),
    ("batch_norm_group", 0),
  ):
    value = getattr(network, name)
    if value < least:
      raise ValueError(f"{name} is {value}; it must be at least {least}")
  for name in ("df", "qk_head_dim"):
    value = getattr(network, name)
    if value is not None and value < 1:
      raise ValueError(f"{name} is {value}; it must be at least 1, or None")
  for name, known in (
    ("stem", STEMS),
    ("activation", ACTIVATIONS),
    ("channel_attention", CHANNEL_ATTENTIONS),
    ("attention_implementation", IMPLEMENTATIONS),
    ("remat", REMATS),
    ("dtype", DTYPES),
  ):
    value = getattr(network, name)
    if value not in known:
      raise ValueError(f"{name} is {value!r}; it must be one of {known}")
  for name in ("drop_path", "dropout", "batch_norm_momentum"):
    value = getattr(network, name)
    if not 0 <= value < 1:
      raise ValueError(f"{name} is {value}; it must be at least 0 and below 1")
  for name in ("rv", "rb", "qk_ratio", "se_ratio"):
    value = getattr(network, name)
    if not value > 0:
      raise ValueError(f"{name} is {value}; it must be above 0")
  if not network.depths or min(network.depths) < 1:
    raise ValueError(
      f"depths is {network.depths}; it must name one or more stages of at least"
      " one block each"
    )
  if len(network.heads) != len(network.depths):
    raise ValueError(
      f"heads is {network.heads}; it must have one entry per stage, and depths"
      f" is {network.depths}"
    )
  if network.out_widths and len(network.out_widths) != len(network.depths):
    raise ValueError(
      f"out_widths is {network.out_widths}; it must have one entry per stage,"
      f" and depths is {network.depths}"
    )
  if network.out_widths and min(network.out_widths) < 1:
    raise ValueError(
      f"out_widths is {network.out_widths}; each must be at least 1"
    )
  if network.stem == "tiered" and network.base_width % 8:
    raise ValueError(
      f"base_width is {network.base_width}; the tiered stem asks for a multiple"
      " of 8"
    )
  check_per_pixel(network.window_size, network.position, network.content)
  if network.stem.startswith("attention") and network.base_width % 4:
    raise ValueError(
      f"base_width is {network.base_width}; the four heads of the stem"
      f" {network.stem!r} ask for a multiple of 4"
    )
  patterns = network.operators
  if (
    not patterns
    or len(patterns) > len(network.depths)
    or not all(patterns)
    or not set("".join(patterns)) <= set(OPERATORS)
  ):
    raise ValueError(
      f"operators is {patterns}; it must be a pattern for each stage, of the"
      f" letters {', '.join(OPERATORS)}"
    )
  if network.attention_implementation == "direct" and not any(
    "p" in pattern for pattern in patterns
  ):
    raise ValueError(
      "attention_implementation is 'direct', which is for per-pixel attention;"
      f" operators is {patterns}, without a 'p'"
    )
  for spec in itertools.chain(*network.stages):
    _check_block(network, spec)


def _check_block(network, spec):
  if not network.inverted:
    for name in ("rv", "rb"):
      ratio = getattr(network, name)
      if spec.width * ratio % 1:
        raise ValueError(
          f"{name} is {ratio}; {name} times {spec.width}, the width of"
          f" {spec.name}, must be a whole number"
        )
  if spec.operator == "c":
    if network.group_width and spec.width % network.group_width:
      raise ValueError(
        f"group_width is {network.group_width}, which does not divide"
        f" {spec.width}, the width of {spec.name}"
      )
    return
  try:
    half_tables = (spec.operator == "h" and not network.timm) or (
      spec.operator == "p" and network.position == "relative"
    )
    check_heads(spec.heads, spec.qk_width, spec.value_width, half_tables)
  except ValueError as error:
    raise ValueError(f"{spec.name}: {error}") from None
