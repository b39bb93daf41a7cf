"""Slide attention, the local attention of Slide-Transformer.

"Slide-Transformer: Hierarchical Vision Transformer with Local Self-Attention",
Pan et al., CVPR 2023, arXiv:2304.04237. Where the paper is silent, the authors'
code decides: github.com/LeapLabTHU/Slide-Transformer, and DAT of the same
authors for separate kernels and reduced widths.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from halonet.fields import MOST_RATIO, field
from halonet.layers.base import (
  Attention,
  Norm,
  Site,
  average_pool,
  check_map,
)
from halonet.layers.projections import (
  LINEAR_INIT,
  check_heads,
  merge_heads,
  project,
)
from halonet.ops.arguments import check_count
from halonet.ops.shifted import check_window, fixed_shifts, slide_attention

SHIFTS = ("deformed", "fixed", "merged")
INITS = ("uniform", "zeros")


class SlideAttention(nn.Module):
  """Self-attention of every pixel to shifts of the map around it.

  Queries, keys and values are linear in the input, with biases; there is no
  output projection. A depthwise kernel, shared by all heads, shifts keys and
  values; see `halonet.ops.shifted.slide_attention`. Where the layer is to
  shrink the map, an average pool follows.

  Attributes:
    heads: number of attention heads.
    window_size: side of the window in pixels (k); odd.
    shifts: "deformed", the fixed shifts and a learned kernel beside them;
      "fixed", without the learned one; or "merged", a single learned kernel,
      with parameters as `merge` makes them.
    shared_shifts: whether keys and values share the learned kernel.
    fixed_bias: whether the fixed shifts have a trained bias, which keys and
      values share.
    reduction: width of the input over that of queries, keys, values and the
      output. `heads` times it must divide the width.
    shift_init: learned kernels and all biases of shifts start "uniform", with
      bounds of ±1/window_size, or as "zeros".
    stride: of the average pool, which has the same size; 1: none.
    dtype: of the computation; parameters are float32.
  """

  heads: int
  window_size: int = 3
  shifts: str = "deformed"
  shared_shifts: bool = True
  fixed_bias: bool = True
  reduction: int = 1
  shift_init: str = "uniform"
  stride: int = 1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Float[Array, "b oh ow v"]:
    """Maps `[batch, height, width, channels]` to `[batch, ⌈height/stride⌉,
    ⌈width/stride⌉, channels/reduction]`.

    Raises:
      ValueError: if x is no floating-point map in a batch, if `heads` does not
        divide the width, or if an attribute is out of range.
    """
    check_map(x)
    check_window(self.window_size)
    check_count("stride", self.stride)
    _check_choice("shifts", self.shifts, SHIFTS)
    _check_choice("shift_init", self.shift_init, INITS)
    width = _reduced(x.shape[-1], self.reduction)
    check_heads(self.heads, width, width, half_tables=False)
    head_dim = width // self.heads
    # As in the authors' code, by the width of a head before the reduction.
    scale = (head_dim * self.reduction) ** -0.5
    query, key, value = (
      project(x, self.heads, width, self.dtype, name, factor, bias=True)
      for name, factor in (("query", scale), ("key", None), ("value", None))
    )
    shifts = self.window_size**2
    table = self.param("offset_table", LINEAR_INIT, (self.heads, shifts))
    bias = None
    if self.fixed_bias and self.shifts != "merged":
      init = _uniform(1 / self.window_size, self.shift_init)
      bias = self.param("fixed_bias", init, (head_dim, shifts))
    kernels = self._kernels(head_dim, bias)
    output = slide_attention(
      query, key, value, table=table, window_size=self.window_size, **kernels
    )
    return average_pool(merge_heads(output), self.stride)

  def _kernels(self, head_dim, bias):
    """Returns the kernels and biases of `slide_attention`."""
    if self.shifts == "fixed":
      return {"bias": bias}
    merged = self.shifts == "merged"
    fixed = fixed_shifts(self.window_size, head_dim)
    bias = 0 if bias is None else bias

    def learned(name):
      shift = Shift(
        self.window_size,
        head_dim,
        shift_init=self.shift_init,
        around=merged,
        name=name if merged else f"deformed_{name}",
      )
      kernel, own = shift()
      return (kernel, own) if merged else (kernel + fixed, own + bias)

    kernel, own = learned("shift")
    kernels = {"kernel": kernel, "bias": own}
    if not self.shared_shifts:
      kernel, own = learned("value_shift")
      kernels |= {"value_kernel": kernel, "value_bias": own}
    return kernels


class Shift(nn.Module):
  """Parameters of a depthwise convolution that makes the shifts of a map.

  Attributes:
    window_size: side of the window in pixels.
    head_dim: channels of a head.
    shift_init: see `SlideAttention`.
    around: whether the kernel starts about the fixed shifts instead of zero.
  """

  window_size: int
  head_dim: int
  shift_init: str
  around: bool

  @nn.compact
  def __call__(
    self,
  ) -> tuple[Float[Array, "window window d shifts"], Float[Array, "d shifts"]]:
    """Returns kernel and bias, as `slide_attention` takes them."""
    size, dim = self.window_size, self.head_dim
    init = _uniform(1 / size, self.shift_init)

    def kernel_init(key, shape):
      kernel = init(key, shape)
      return kernel + fixed_shifts(size, dim) if self.around else kernel

    kernel = self.param("kernel", kernel_init, (size, size, dim, size**2))
    return kernel, self.param("bias", init, (dim, size**2))


def merge(params: Mapping[str, Any]) -> dict[str, Any]:
  """Turns parameters with deformed shifts into those with merged ones.

  The outputs are the same but for rounding: a merged kernel is the sum of the
  learned and the fixed one, and its bias the sum of both biases.

  Args:
    params: parameters of a `SlideAttention`, or of any model that has some.

  Returns:
    The same, with merged shifts in every such layer.
  """
  merged = {}
  for name, value in params.items():
    if not isinstance(value, Mapping):
      merged[name] = value
    elif name in ("deformed_shift", "deformed_value_shift"):
      kernel, bias = value["kernel"], value["bias"]
      size, _, dim, _ = kernel.shape
      merged[name.removeprefix("deformed_")] = {
        "kernel": kernel + fixed_shifts(size, dim),
        "bias": bias + params.get("fixed_bias", 0),
      }
    else:
      merged[name] = merge(value)
  if "deformed_shift" in params:
    merged.pop("fixed_bias", None)
  return merged


def _uniform(bound, kind):
  """Returns the initialiser of kernels and biases of shifts."""
  if kind == "zeros":
    return nn.initializers.zeros

  def init(key, shape):
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

  return init


def _check_choice(name, value, choices):
  if value not in choices:
    raise ValueError(f"{name} is {value!r}; it must be one of {choices}")


def _reduced(width, reduction, name="reduction"):
  """Returns width / reduction; raises ValueError if it is not whole."""
  check_count(name, reduction)
  if width % reduction:
    raise ValueError(
      f"{name} is {reduction}; it must divide the width, {width}"
    )
  return width // reduction


@dataclasses.dataclass(frozen=True)
class Slide(Attention):
  """The operator "slide"."""

  half_tables = False

  slide_window: int = field(
    3,
    "Side of the window of slide attention in pixels (k); odd.",
    least=1,
    most=31,  # The kernel has slide_window⁴ numbers for each channel.
  )
  slide_shifts: str = field(
    "deformed",
    "Shifts of slide attention: deformed, with a learned kernel beside the"
    " fixed one; fixed alone; or merged, one kernel for both.",
    choices=SHIFTS,
  )
  slide_shared_shifts: bool = field(
    True,
    "Whether keys and values share the learned kernel of their shifts. Fixed"
    " shifts have none.",
  )
  slide_fixed_bias: bool = field(
    True,
    "Whether the fixed shifts have a trained bias, as in the authors' code."
    " Merged ones have only that of their kernel.",
  )
  slide_reduction: int = field(
    1,
    "Width of a block over that of the queries, keys and values of its slide"
    " attention.",
    least=1,
    most=MOST_RATIO,
  )
  slide_init: str = field(
    "uniform",
    "Start of the learned kernels and biases of shifts: uniform, as the"
    " authors'; or zeros, which makes the attention plainly local.",
    choices=INITS,
  )

  def __post_init__(self):
    check_window(self.slide_window, "slide_window")

  def window(self, block: Site) -> int:
    return self.slide_window

  def widths(self, block: Site) -> tuple[int, int]:
    reduced = _reduced(block.width, self.slide_reduction, "slide_reduction")
    return reduced, reduced

  def layer(self, block: Site, norm: Norm, dtype: DTypeLike) -> nn.Module:
    return SlideAttention(
      heads=self.heads[block.stage],
      window_size=self.slide_window,
      shifts=self.slide_shifts,
      shared_shifts=self.slide_shared_shifts,
      fixed_bias=self.slide_fixed_bias,
      reduction=self.slide_reduction,
      shift_init=self.slide_init,
      stride=block.stride,
      dtype=dtype,
      name=self.name,
    )
