"""Counts what kinds of local attention cost: Table 1 of the HaloNet paper.

The paper gives formulas for four ways to attend, for a map of H×W pixels and c
channels (arXiv:2103.12731, Table 1). Here they stand next to counts of the
programs of `halonet.ops.attention`, with everything that the formulas leave out
as a term of its own: the two agree to the last unit.

  global        every pixel sees every pixel.
  per-pixel     every pixel gathers a k×k neighbourhood of its own: blocks of
                one pixel, with a halo of ⌊k/2⌋.
  SASA          the pixels of a b×b block share a neighbourhood with a halo of
                ⌊k/2⌋, and a mask leaves each its own k×k window of it.
  blocked local the same with a halo of h and without the mask.
"""

import dataclasses
import fractions
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from halonet.cost import counted
from halonet.errors import UsageError
from halonet.fields import MOST_SIDE, MOST_WIDTH, check_fields, field
from halonet.ops import blocks, positions
from halonet.ops.attention import blocked_local_attention, global_attention

METHODS = ("global", "per-pixel windows", "SASA", "blocked local")


@dataclasses.dataclass(frozen=True)
class LayerSetting:
  """The numbers that Table 1 asks for, and the number of heads.

  Raises:
    UsageError: on construction, if a field is out of range.
  """

  height: int = field(
    64, "Height of the feature map in pixels (H).", least=1, most=MOST_SIDE
  )
  width: int = field(
    64, "Width of the feature map in pixels (W).", least=1, most=MOST_SIDE
  )
  channels: int = field(
    64,
    "Channels of queries, keys and values each (c).",
    least=1,
    most=MOST_WIDTH,
  )
  window: int = field(
    7,
    "Side of a pixel's own window in pixels (k); odd.",
    least=1,
    most=MOST_SIDE,
  )
  block_size: int = field(
    8, "Side of a block in pixels (b).", least=1, most=MOST_SIDE
  )
  halo_size: int = field(
    3, "Width of the halo in pixels (h).", least=0, most=MOST_SIDE
  )
  heads: int = field(
    4,
    "Heads that share the channels. Table 1 does not depend on them; the"
    " relative terms and the softmax do.",
    least=1,
    most=MOST_WIDTH,
  )

  def __post_init__(self):
    try:
      check_fields(self)
    except ValueError as error:
      raise UsageError(f"--{error}") from None
    if self.window % 2 == 0:
      raise UsageError(
        f"--window is {self.window}; it must be odd, so that its pixel is in"
        " the middle"
      )
    if self.channels % (2 * self.heads):
      raise UsageError(
        f"--channels is {self.channels}; it must be a multiple of twice"
        f" --heads, {2 * self.heads}: half a head is for rows, half for columns"
      )

  @property
  def pixels(self) -> int:
    return self.height * self.width


@dataclasses.dataclass(frozen=True)
class MethodCost:
  """A row of Table 1: formulas, and the terms that make them the program.

  Attributes:
    method: one of `METHODS`.
    memory: numbers held between the steps. `formula`: neighbourhoods of one
      tensor, keys or values, by the paper; `padding`: those of the pixels that
      complete the last blocks; `values`, `keys`: what the program gathers;
      `places`: one-hot vectors next to the keys, by which one product yields
      the relative terms as well; `logits`.
    field_formula: rows and columns that a pixel sees, by the paper.
    field_counted: those that it depends on in the program.
    flops: of the whole map. `formula`: by the paper's formula per pixel;
      `padding`: of the pixels that complete the last blocks; `products`: of
      queries with keys, and of weights with values, in the program;
      `relative`; `masks`: of border and window, and the zeros (one each) with
      which tensors are padded; `softmax`; `program`: all of it.
    exponentials: exponentials in the program.
  """

  method: str
  memory: dict[str, fractions.Fraction | int]
  field_formula: tuple[int, int]
  field_counted: tuple[int, int]
  flops: dict[str, int]
  exponentials: int

  @property
  def unexplained(self) -> int:
    """What formulas and named terms leave open; 0 if they agree."""
    memory, flops = self.memory, self.flops
    parts = sum(flops[x] for x in ("products", "relative", "masks", "softmax"))
    return (
      abs(memory["formula"] + memory["padding"] - memory["values"])
      + abs(memory["keys"] - memory["values"])
      + abs(flops["formula"] + flops["padding"] - flops["products"])
      + abs(parts - flops["program"])
    )


def program(
  method: str, setting: LayerSetting, images: int = 1
) -> tuple[Callable, tuple[jax.ShapeDtypeStruct, ...]]:
  """Returns a method's function, and the shapes of its arguments.

  They are float32 query, key, value and the two relative tables.
  """
  block_size, halo_size = _geometry(method, setting)
  shape = (images, setting.height, setting.width, setting.heads)
  dim = setting.channels // setting.heads
  if method == "global":
    function = global_attention
    offsets = [2 * setting.height - 1, 2 * setting.width - 1]
  else:

    def function(*arrays):
      return blocked_local_attention(
        *arrays,
        block_size=block_size,
        halo_size=halo_size,
        mask_window=method == "SASA",
        implementation="xla",  # Its operations are those of the formula.
      )

    offsets = [positions.num_offsets(block_size, halo_size)] * 2
  shapes = [(*shape, dim)] * 3 + [(rows, dim // 2) for rows in offsets]
  return function, tuple(
    jax.ShapeDtypeStruct(each, jnp.float32) for each in shapes
  )


def _geometry(method, setting):
  """Returns the block and halo with which blocked attention is the method."""
  if method == "per-pixel windows":
    return 1, setting.window // 2
  if method == "SASA":
    return setting.block_size, setting.window // 2
  return setting.block_size, setting.halo_size


def table(setting: LayerSetting) -> list[MethodCost]:
  """Computes Table 1 for a setting, without allocating a map."""
  return [_cost(method, setting) for method in METHODS]


def _cost(method, setting):
  pixels, channels = setting.pixels, setting.channels
  if method == "global":
    # All pixels share one neighbourhood, the map. The paper's 4(HW)²c is of the
    # whole map; the share of a pixel is 4HWc.
    block_area = area = padded = pixels
    field = (setting.height, setting.width)
  else:
    block_size, halo_size = _geometry(method, setting)
    side = block_size + 2 * halo_size
    block_area, area = block_size**2, side**2
    padded = math.prod(
      block_size * blocks.num_blocks(length, block_size)
      for length in (setting.height, setting.width)
    )
    field = (setting.window if method == "SASA" else side,) * 2
  share = fractions.Fraction(area * channels, block_area)
  flops = 4 * area * channels
  memory_counted, flops_counted, exponentials = _counted(
    *program(method, setting), channels // setting.heads
  )
  return MethodCost(
    method=method,
    memory={"formula": pixels * share, "padding": (padded - pixels) * share}
    | memory_counted,
    field_formula=field,
    field_counted=receptive_field(method, setting),
    flops={"formula": flops * pixels, "padding": flops * (padded - pixels)}
    | flops_counted,
    exponentials=exponentials,
  )


def _counted(function, shapes, dim):
  """Counts memory, FLOPs by part, and exponentials of a program."""
  flops = dict.fromkeys(("products", "relative", "masks", "softmax"), 0)
  memory = {}
  operations = counted.operations(function, *shapes)
  for operation in operations:
    if not operation.flops:
      continue
    # Outside of the named parts, zeros for the padding are made.
    part = next((each for each in operation.scopes if each in _PARTS), "masks")
    if part == "logits":
      # Terms of the sum beyond a head's width tell where a key lies.
      products = operation.flops * dim // operation.contracted
      flops["products"] += products
      flops["relative"] += operation.flops - products
      # A neighbourhood has as many keys as there are queries, or more.
      keys = max(each.size for each in operation.operands)
      content = keys * dim // operation.contracted
      memory |= {"keys": content, "places": keys - content}
      memory["logits"] = operation.result.size
    elif part == "values":
      flops["products"] += operation.flops
      left, right = (each.size for each in operation.operands)
      memory["values"] = right if left == memory["logits"] else left
    else:
      flops[part] += operation.flops
  flops["program"] = sum(each.flops for each in operations)
  return memory, flops, sum(each.transcendentals for each in operations)


_PARTS = ("logits", "values", "relative", "masks", "softmax")


def receptive_field(method: str, setting: LayerSetting) -> tuple[int, int]:
  """Counts rows and columns of values that an output pixel depends on.

  The gradient of a pixel tells, one far from the border if there is such. It is
  taken on a part of the map that holds all that the pixel can see; a pixel of
  global attention sees the whole of any part.
  """
  block_size, halo_size = _geometry(method, setting)
  around = blocks.num_blocks(halo_size, block_size)
  enough = (2 * around + 1) * block_size
  lengths = (setting.height, setting.width)
  part = dataclasses.replace(
    setting,
    height=min(setting.height, enough),
    width=min(setting.width, enough),
    channels=2,
    heads=1,
  )
  function, shapes = program(method, part)
  query, key, value, *tables = (jnp.zeros(x.shape, x.dtype) for x in shapes)
  row, col = (
    min(
      (blocks.num_blocks(length, block_size) - 1) // 2 * block_size
      + block_size // 2,
      length - 1,
    )
    for length in (part.height, part.width)
  )

  def pixel(value):
    return function(query, key, value, *tables)[0, row, col].sum()

  seen = np.asarray(jax.jit(jax.grad(pixel))(value)[0, :, :, 0, 0]) > 0
  field = int(seen.any(axis=1).sum()), int(seen.any(axis=0).sum())
  if method == "global" and field == (part.height, part.width):
    return lengths
  return field
