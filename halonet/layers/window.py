"""Attention in shifted windows, the operator of Swin.

"Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", Liu
et al., ICCV 2021, arXiv:2103.14030.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from halonet.fields import MOST_SIDE, field, fields_of
from halonet.layers import layouts
from halonet.layers.base import (
  Attention,
  Norm,
  Operator,
  Site,
  average_pool,
  check_map,
)
from halonet.layers.layouts import Entries, Layout, Shapes
from halonet.layers.projections import (
  LINEAR_INIT,
  merge_heads,
  projections,
)
from halonet.ops.arguments import check_count
from halonet.ops.windows import window_attention


class WindowAttention(nn.Module):
  """Self-attention within windows, with a bias for every offset.

  Queries, keys and values are linear in the input, with biases; there is no
  output projection. Keys beyond the border are masked. (Swin's authors let them
  take part, with the projections' biases for their values.)

  Attributes:
    heads: number of attention heads.
    window_size: side of a window in pixels.
    shift: pixels by which the windows are shifted down and to the right, on
      maps larger than a window.
    qk_features: see `HaloAttention`.
    value_features: see `HaloAttention`.
    stride: size and stride of an average pool that follows.
    dtype: of the computation; parameters are float32.
  """

  heads: int
  window_size: int
  shift: int = 0
  qk_features: int | None = None
  value_features: int | None = None
  stride: int = 1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Float[Array, "b oh ow v"]:
    """Maps `[batch, height, width, channels]` to `[batch, ⌈height/stride⌉,
    ⌈width/stride⌉, value_features]`.

    Raises:
      ValueError: if x is no floating-point map in a batch, if `heads` does not
        divide a width, or if an attribute is out of range.
    """
    check_map(x)
    check_count("window_size", self.window_size)
    check_count("stride", self.stride)
    query, key, value, _ = projections(
      self, x, half_tables=False, scaled=True, bias=True
    )
    offsets = 2 * self.window_size - 1
    table = self.param(
      "relative_bias",
      LINEAR_INIT,
      (offsets, offsets, self.heads),
    )
    output = window_attention(
      query,
      key,
      value,
      table,
      window_size=self.window_size,
      shift=self.shift,
    )
    return average_pool(merge_heads(output), self.stride)


@dataclasses.dataclass(frozen=True)
class Window(Attention):
  """The operator "window"; in every second block of a stage windows shift."""

  half_tables = False
  per_stage = ("heads", "stage_windows")

  window_size: int = field(
    7,
    "Side of a window of attention in pixels.",
    least=1,
    most=MOST_SIDE,
    sides=2,
  )
  stage_windows: tuple[int, ...] = field(
    (),
    "Side of a window for each stage, in place of window_size.",
    least=1,
    most=MOST_SIDE,
    sides=2,
    kind=tuple[int, ...],
  )

  def window(self, block: Site) -> int:
    if self.stage_windows:
      return self.stage_windows[block.stage]
    return self.window_size

  def check(self, block: Site) -> None:
    default = fields_of(Window)["window_size"].default
    if self.stage_windows and self.window_size != default:
      raise ValueError(
        f"window_size is {self.window_size} and stage_windows"
        f" {self.stage_windows}; set only one of them"
      )
    super().check(block)

  def layer(self, block: Site, norm: Norm, dtype: DTypeLike) -> nn.Module:
    size = self.window(block)
    return WindowAttention(
      window_size=size,
      shift=size // 2 if block.index % 2 else 0,
      **self.shared(block, dtype),
    )

  def adapt(
    self, name: str, array: Any, shape: tuple[int, ...], source: Operator
  ) -> Any:
    """Resizes the bias to another window; see `resize_bias`."""
    if name != "relative_bias" or array.shape[2:] != shape[2:]:
      return super().adapt(name, array, shape, source)
    if array.shape == shape:
      return array
    return resize_bias(array, shape[0])

  def timm_entries(self, ours: str, theirs: str, shapes: Shapes) -> Entries:
    """Relates timm's table, whose offsets are `query − key`, in one axis."""
    ours, theirs = f"{ours}/attention", f"{theirs}.attn"
    path = f"params/{ours}/relative_bias"
    table = Layout(
      (path,),
      lambda x: x[::-1, ::-1].reshape(-1, x.shape[-1]),
      lambda x: (x.reshape(shapes[path])[::-1, ::-1],),
    )
    return layouts.joined_linears(
      ours, f"{theirs}.qkv", ("query", "key", "value"), shapes
    ) | {f"{theirs}.relative_position_bias_table": table}


def resize_bias(table: np.ndarray, offsets: int) -> np.ndarray:
  """Resizes a bias by offset to windows of another size, as timm does.

  Offset o of the table, from the middle on, is placed at 1 + r + … + r^(o−1) of
  the new offsets, so that near ones stay nearly as they are. For larger windows
  r is such that the farthest meet; for smaller ones it is 1.01, and the
  farthest are left out. Values are interpolated linearly between.

  Args:
    table: `[2·a − 1, 2·a − 1, heads]`, by row and column offset.
    offsets: 2·b − 1, the number of offsets to be.

  Returns:
    `[2·b − 1, 2·b − 1, heads]` in the table's dtype.
  """
  old, new = len(table) // 2, offsets // 2
  low, high = 1.01, 1.5
  while high - low > 1e-6:
    ratio = (low + high) / 2
    if (1 - ratio**old) / (1 - ratio) > new:
      high = ratio
    else:
      low = ratio
  half = np.cumsum(ratio ** np.arange(old))
  places = np.concatenate([-half[::-1], [0], half])
  weights = np.stack(
    [
      np.interp(np.arange(-new, new + 1), places, one_hot)
      for one_hot in np.eye(len(places))
    ],
    axis=1,
  )
  resized = np.einsum("ia,jb,abn->ijn", weights, weights, table)
  return resized.astype(table.dtype)
