"""What both kernels of slide attention do with maps in vector memory."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from halonet.ops.forms.tpu.slide_tiling import SlideTiling
from halonet.ops.forms.tpu.tiling import LANES


def live_lanes(tiling: SlideTiling) -> jax.Array | None:
  """Returns how many lanes have channels in this grid step; None: all that the
  block has.

  The last group may have fewer heads, and its block is arbitrary beyond them.
  To be called outside of loops.
  """
  if tiling.groups * tiling.group_heads == tiling.heads:
    return None
  return tiling.channels - pl.program_id(0) * tiling.lanes


def read(
  tiling: SlideTiling, live: jax.Array | None, ref, row: jax.Array, rows: int
) -> jax.Array:
  """Returns some rows of a map, float32 `[rows, columns, …, 128]`.

  Lanes without a channel, and columns beyond the map, are zero. `live` is from
  `live_lanes`.
  """
  x = ref[pl.ds(row, rows)].astype(jnp.float32)
  if live is not None:
    lane = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    x = jnp.where(lane < live, x, 0.0)
  x = _fill(x, x.ndim - 1, LANES)
  return _fill(x, 1, tiling.columns)


def write(tiling: SlideTiling, ref, row: jax.Array, x: jax.Array) -> None:
  """Writes rows of a map, `[rows, columns, …, 128]`: the inverse of `read`."""
  x = x[:, : tiling.width, ..., : tiling.lanes]
  ref[pl.ds(row, len(x))] = x.astype(ref.dtype)


def as_rows(tiling: SlideTiling, x: jax.Array, rows: int) -> jax.Array:
  """Reshapes `[pixels, 128]` to `[rows, columns, …, 128]`."""
  images = tiling.bordered[2:-1]
  return x.reshape(rows, tiling.columns, *images, LANES)


def stage(tiling: SlideTiling, live: jax.Array | None, ref, bordered) -> None:
  """Copies a map between zeros; `live` is from `live_lanes`."""
  height, radius = tiling.height, tiling.radius
  first, end = tiling.left, tiling.left + tiling.columns
  for rows in (pl.ds(0, radius), pl.ds(radius + height, radius)):
    if radius:
      bordered[rows] = jnp.zeros_like(bordered[rows])
  for columns in (slice(0, first), slice(end, bordered.shape[1])):
    if columns.stop > columns.start:
      bordered[:, columns] = jnp.zeros_like(bordered[:, columns])

  @pl.loop(0, height)
  def _(row):
    bordered[pl.ds(row + radius, 1), first:end] = read(
      tiling, live, ref, row, 1
    )


def unstage(tiling: SlideTiling, bordered, ref) -> None:
  """Copies what is between the borders to a map."""
  end = tiling.left + tiling.columns

  @pl.loop(0, tiling.height)
  def _(row):
    rows = pl.ds(row + tiling.radius, 1)
    write(tiling, ref, row, bordered[rows, tiling.left : end])


def moved(
  tiling: SlideTiling, row: jax.Array, rows: int, pixel: int
) -> tuple[pl.Slice, slice]:
  """Returns where some rows of a map lie between zeros, as seen at a pixel of
  the window."""
  down, along = divmod(pixel, tiling.window_size)
  first = tiling.left - tiling.radius + along
  return pl.ds(row + down, rows), slice(first, first + tiling.columns)


def products(
  tiling: SlideTiling, x: jax.Array, bordered, matrices, row: jax.Array, rows
) -> jax.Array:
  """Returns Σ_p (x y(p)) W_p + x b, float32 `[pixels, logits]`.

  Args:
    tiling: the layer's tiling.
    x: float32 `[pixels, 128]`, from `read`.
    bordered: y, from `stage`.
    matrices: W and, as the last one, b: `[shifts + 1, 128, logits]`.
    row: first row of x.
    rows: number of rows.
  """
  total = product(x.astype(matrices.dtype), matrices[tiling.shifts])
  for pixel in range(tiling.shifts):
    y = bordered[moved(tiling, row, rows, pixel)].reshape(x.shape)
    total += product((x * y).astype(matrices.dtype), matrices[pixel])
  return total


def exponentials(tiling: SlideTiling, logits: jax.Array) -> jax.Array:
  """Returns exp(logits − maximum of the head)."""
  maximum, have = logits, 1
  while have < tiling.shifts:  # The maximum of the lanes that follow.
    step = min(have, tiling.shifts - have)
    turned = pltpu.roll(maximum, tiling.logits - step, 1)
    maximum = jnp.maximum(maximum, turned)
    have += step
  # Lanes of other heads may follow the repeated ones, and be larger.
  return jnp.exp(jnp.minimum(logits - maximum, 0.0))


product = functools.partial(jnp.dot, preferred_element_type=jnp.float32)


def _fill(x, axis, size):
  """Appends zeros along an axis."""
  missing = list(x.shape)
  missing[axis] = size - x.shape[axis]
  if not missing[axis]:
    return x
  return jnp.concatenate([x, jnp.zeros(missing, x.dtype)], axis)
