"""What the kinds of local attention cost: Table 1 of the HaloNet paper.

The paper gives formulas for four ways to attend, for a map of H×W pixels and c
channels (arXiv:2103.12731, Table 1). Here they stand beside what the programs
of `halonet.ops.attention` hold, counted, with everything that the formulas
leave out as terms of its own: what is said to agree, agrees to the last unit.

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
from halonet.ops import blocks, positions
from halonet.ops.attention import blocked_local_attention, global_attention

METHODS = ("global", "per-pixel windows", "SASA", "blocked local")


@dataclasses.dataclass(frozen=True)
class Setting:
  """What Table 1 asks for, and the number of heads.

  Attributes:
    height: of the map, in pixels (H).
    width: of the map, in pixels (W).
    channels: of queries, keys and values each (c).
    window: side of a pixel's own window, in pixels (k); odd.
    block_size: side of a block, in pixels (b).
    halo_size: pixels that a neighbourhood reaches beyond its block (h).
    heads: the channels are shared out to them. The formulas do not depend on
      them, the relative terms and the softmax do.

  Raises:
    UsageError: when made, if a field is out of range.
  """

  height: int = 64
  width: int = 64
  channels: int = 64
  window: int = 7
  block_size: int = 8
  halo_size: int = 3
  heads: int = 4

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      least = 0 if field.name == "halo_size" else 1
      if value < least:
        raise UsageError(
          f"--{field.name} is {value}; it must be at least {least}"
        )
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
    memory_formula: numbers in the neighbourhoods of one tensor, keys or
      values, by the paper's formula.
    memory_padding: those of the pixels that complete the last blocks.
    memory_values: those that the program gathers of the values.
    memory_keys: those that it gathers of the keys.
    memory_places: those of the one-hot vectors beside the keys, by which one
      product yields the relative terms as well.
    logits: numbers that the program makes of queries and keys.
    field_formula: rows and columns that a pixel sees, by the formula.
    field_counted: those on which it depends in the program.
    flops_formula: of the whole map, by the paper's formula per pixel.
    flops_padding: of the pixels that complete the last blocks.
    flops_products: of the program's products of queries with keys, and of
      weights with values.
    flops_relative: of the relative terms.
    flops_masks: of the masks of border and window, and of the zeros (one
      each) with which tensors are padded.
    flops_softmax: of the softmax, beside its `exponentials`.
    flops_program: of the whole program.
    exponentials: that the program takes.
  """

  method: str
  memory_formula: fractions.Fraction
  memory_padding: fractions.Fraction
  memory_values: int
  memory_keys: int
  memory_places: int
  logits: int
  field_formula: tuple[int, int]
  field_counted: tuple[int, int]
  flops_formula: int
  flops_padding: int
  flops_products: int
  flops_relative: int
  flops_masks: int
  flops_softmax: int
  flops_program: int
  exponentials: int

  @property
  def unexplained(self) -> int:
    """What formulas and named terms leave open; 0 if they agree."""
    return (
      abs(self.memory_formula + self.memory_padding - self.memory_values)
      + abs(self.memory_keys - self.memory_values)
      + abs(self.flops_formula + self.flops_padding - self.flops_products)
      + abs(
        self.flops_products
        + self.flops_relative
        + self.flops_masks
        + self.flops_softmax
        - self.flops_program
      )
    )


def program(
  method: str, setting: Setting, images: int = 1
) -> tuple[Callable, tuple[jax.ShapeDtypeStruct, ...]]:
  """The function of a method, and the shapes of its arguments: float32 query,
  key, value and the two relative tables."""
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


def table(setting: Setting) -> list[MethodCost]:
  """Table 1 for a setting; nothing of the map's size is allocated."""
  return [_row(method, setting) for method in METHODS]


def _geometry(method, setting):
  """Block and halo with which `blocked_local_attention` is the method."""
  if method == "per-pixel windows":
    return 1, setting.window // 2
  if method == "SASA":
    return setting.block_size, setting.window // 2
  return setting.block_size, setting.halo_size


def _row(method, setting):
  pixels, channels = setting.pixels, setting.channels
  if method == "global":
    # The paper's 4(HW)²c is that of the map; its share of a pixel is 4HWc.
    memory = fractions.Fraction(pixels * channels)
    memory_padding = fractions.Fraction(0)
    field = (setting.height, setting.width)
    flops, padding = 4 * pixels**2 * channels, 0
  else:
    block_size, halo_size = _geometry(method, setting)
    area = (block_size + 2 * halo_size) ** 2
    padded = math.prod(
      block_size * blocks.num_blocks(length, block_size)
      for length in (setting.height, setting.width)
    )
    memory = fractions.Fraction(pixels, block_size**2) * area * channels
    memory_padding = (
      fractions.Fraction(padded - pixels, block_size**2) * area * channels
    )
    side = block_size + 2 * halo_size
    if method == "SASA":
      side = setting.window
    field = (side, side)
    flops = 4 * area * channels * pixels
    padding = 4 * area * channels * (padded - pixels)
  return MethodCost(
    method=method,
    memory_formula=memory,
    memory_padding=memory_padding,
    field_formula=field,
    field_counted=receptive_field(method, setting),
    flops_formula=flops,
    flops_padding=padding,
    **_counted(*program(method, setting), setting.channels // setting.heads),
  )


def _counted(function, shapes, dim):
  """What is in the program, by the names of its parts."""
  flops = dict.fromkeys(("products", "relative", "masks", "softmax"), 0)
  found = {}
  total = exponentials = 0
  for operation in counted.operations(function, *shapes):
    total += operation.flops
    exponentials += operation.transcendentals
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
      found["memory_keys"] = keys * dim // operation.contracted
      found["memory_places"] = keys - found["memory_keys"]
      found["logits"] = operation.result.size
    elif part == "values":
      flops["products"] += operation.flops
      weights = operation.result.size // dim * operation.contracted
      left, right = (each.size for each in operation.operands)
      found["memory_values"] = right if left == weights else left
    else:
      flops[part] += operation.flops
  return found | dict(
    {f"flops_{part}": number for part, number in flops.items()},
    flops_program=total,
    exponentials=exponentials,
  )


_PARTS = ("logits", "values", "relative", "masks", "softmax")


def receptive_field(method: str, setting: Setting) -> tuple[int, int]:
  """Rows and columns of values on which an output pixel depends.

  The gradient of a pixel says so, which is far from the border where the map
  has such; it is taken on a part of the map with all that the pixel can see. Of
  global attention that is everything: the whole of any part.
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
