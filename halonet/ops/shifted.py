"""Slide attention: every pixel attends to shifted copies of the map.

"Slide-Transformer: Hierarchical Vision Transformer with Local Self-Attention",
Pan et al., CVPR 2023, arXiv:2304.04237.

A depthwise convolution makes window_size² maps of the keys, and as many of the
values. With one-hot kernels these are the map, shifted to each place of a
window, and the attention is local. A learned kernel, added to the one-hot one,
lets a shift gather from the whole window (deformed shifts).
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, nn
from jaxtyping import Array, Float

from halonet.ops import dispatch
from halonet.ops.arguments import check_arrays, check_count
from halonet.ops.forms.form import Place
from halonet.ops.forms.tpu import pallas_slide

IMPLEMENTATIONS = (
  "auto",
  "slices",
  "products",
  "side_by_side",
  "pallas_tpu",
  "convolution",
)


def slide_attention(
  query: Float[Array, "b h w heads d"],
  key: Float[Array, "b h w heads d"],
  value: Float[Array, "b h w heads d"],
  kernel: Float[Array, "window window d shifts"] | None = None,
  bias: Float[Array, "d shifts"] | None = None,
  table: Float[Array, "heads shifts"] | None = None,
  *,
  window_size: int,
  value_kernel: Float[Array, "window window d shifts"] | None = None,
  value_bias: Float[Array, "d shifts"] | None = None,
  implementation: str = "auto",
) -> Float[Array, "b h w heads d"]:
  """Attends to window_size² shifts of keys and values.

  With the shifts k_i = W_i * k + b_i of the keys, those v_i of the values, and
  the channels c of a head,

    y = Σ_i softmax_i(q · k_i + t_i Σ_c q_c) v_i.

  All heads share the kernel. Beyond the border the map is zero, and nothing is
  masked: a shift from there is its bias. The logits are not scaled here.

  Args:
    query: `[batch, height, width, heads, head_dim]`.
    key: the same shape as `query`.
    value: the same shape as `query`.
    kernel: `[window_size, window_size, head_dim, window_size²]`; entry (y, x,
      c, i) is the weight of the pixel `(y − r, x − r)` away, with `r =
      ⌊window_size/2⌋`, in channel c of shift i. None: `fixed_shifts`.
    bias: `[head_dim, window_size²]`, added to the shifts; None: zero.
    table: `[heads, window_size²]`, added to every channel of the shifted keys
      (t); None: zero.
    window_size: side of the window in pixels; odd.
    value_kernel: kernel of the values; None: `kernel`.
    value_bias: bias of the values; None: `bias`.
    implementation: "slices", for fixed shifts alone; "products", a product of
      matrices for each pixel of the window; "side_by_side", the same for all
      heads at once, with zeros between them, for TPUs; "pallas_tpu", the
      same in fused TPU kernels, with reverse mode only, interpreted elsewhere;
      "convolution", the depthwise convolution of the paper, whose shifts are
      window_size² times as large as the map; or "auto", the fastest of these
      (docs/slide.md).

  Returns:
    `[batch, height, width, heads, head_dim]` in the dtype of `value`. Logits
    and softmax are float32 for narrower inputs.

  Raises:
    ValueError: if `window_size` is not odd, if the shapes do not fit, if there
      is no such implementation, or if it cannot serve these arguments.
  """
  check_window(window_size)
  check_arrays(query, key, value)
  heads, head_dim = query.shape[3:]
  shifts = window_size**2
  fixed = kernel is None and value_kernel is None
  implementation = _choose(
    implementation, fixed, query, key, value, window_size
  )
  if kernel is None:
    kernel = jnp.asarray(fixed_shifts(window_size, head_dim))
  bias = jnp.zeros((head_dim, shifts)) if bias is None else bias
  table = jnp.zeros((heads, shifts)) if table is None else table
  value_kernel = kernel if value_kernel is None else value_kernel
  value_bias = bias if value_bias is None else value_bias
  wanted = {
    "value": (value.shape, query.shape),
    "kernel": (kernel.shape, (window_size, window_size, head_dim, shifts)),
    "bias": (bias.shape, (head_dim, shifts)),
    "table": (table.shape, (heads, shifts)),
    "value_kernel": (value_kernel.shape, kernel.shape),
    "value_bias": (value_bias.shape, bias.shape),
  }
  for name, (shape, needed) in wanted.items():
    if shape != needed:
      raise ValueError(f"{name} has shape {shape}; it must be {needed}")
  parameters = kernel, bias[None] + table[:, None], value_kernel, value_bias
  output = _FORMS[implementation](
    query, key, value, *(x.astype(query.dtype) for x in parameters)
  )
  return output.astype(value.dtype)


def _choose(name, fixed, *layer):
  """Returns the name of the form that serves; raises ValueError if none."""
  if name not in IMPLEMENTATIONS:
    raise ValueError(
      f"implementation is {name!r}; it must be one of"
      f" {', '.join(IMPLEMENTATIONS)}"
    )
  if name == "slices" and not fixed:
    raise ValueError(
      "implementation is 'slices', which has fixed shifts alone; 'auto' serves"
      " learned kernels, too"
    )
  place = Place.current()
  if name == "auto":
    return _preferred(fixed, layer, place)
  if name == "pallas_tpu":
    reason = pallas_slide.refuses(*layer, place)
    if reason is not None:
      raise dispatch.Unserved(
        f"implementation is 'pallas_tpu', which cannot serve this: {reason};"
        " 'auto' falls back to XLA"
      )
  return name


def _preferred(fixed, layer, place):
  """Returns the fastest form that serves; `dispatch.implementation` may say
  that it must be without kernels, or have the fewest operations."""
  forced = dispatch.forced()
  if forced == "direct":
    return "slices" if fixed else "products"
  name = "side_by_side" if place.platform == "tpu" else "products"
  if forced not in (None, "auto", "pallas_tpu"):
    return name
  if place.platform == "tpu":
    reason = pallas_slide.refuses(*layer, place) or dispatch.unshared(place)
    if reason is not None:
      message = f"slide attention: {name}, not pallas_tpu ({reason})"
      dispatch.log_once(message, logging.WARNING)
      return name
    name = "pallas_tpu"
  dispatch.log_once(f"slide attention: {name}")
  return name


def fixed_shifts(
  window_size: int, head_dim: int
) -> Float[np.ndarray, "window window d shifts"]:
  """Returns the one-hot kernel whose shift i is the map at place i.

  Places of the window count along its rows: shift i reads the pixel
  `⌊i/window_size⌋ − r` rows and `i mod window_size − r` columns away, with `r =
  ⌊window_size/2⌋`.

  Returns:
    float32 `[window_size, window_size, head_dim, window_size²]`.
  """
  shifts = np.eye(window_size**2, dtype=np.float32)
  shifts = shifts.reshape(window_size, window_size, 1, -1)
  return np.tile(shifts, (1, 1, head_dim, 1))


def check_window(window_size: int, name: str = "window_size") -> None:
  """Raises ValueError unless a window has a side and a pixel in its middle."""
  check_count(name, window_size)
  if window_size % 2 == 0:
    raise ValueError(f"{name} is {window_size}; it must be odd")


# ------------------------------------------------------------------ the forms
#
# `key_bias` is `[heads, d, shifts]` here, with the table in it. The table and
# the keys' bias have no other part in the result than their sum.


def _slices(query, key, value, kernel, key_bias, value_kernel, value_bias):
  """Multiplies by the map itself, moved by a pixel at a time."""
  del kernel, value_kernel  # They are those of `fixed_shifts`.
  size = round(key_bias.shape[-1] ** 0.5)
  wide = jnp.promote_types(query.dtype, jnp.float32)
  with jax.named_scope("logits"):
    query = query.astype(wide)
    logits = jnp.einsum("bhwnd,ndi->bhwni", query, key_bias.astype(wide))
    products = [
      (query * pixel.astype(wide)).sum(axis=-1) for pixel in _pixels(key, size)
    ]
    logits += jnp.stack(products, axis=-1)
  with jax.named_scope("softmax"):
    weights = nn.softmax(logits)
  with jax.named_scope("values"):
    output = jnp.einsum("bhwni,di->bhwnd", weights, value_bias.astype(wide))
    for place, pixel in enumerate(_pixels(value, size)):
      output += weights[..., place, None] * pixel.astype(wide)
  return output


def _products(query, key, value, kernel, key_bias, value_kernel, value_bias):
  """Multiplies by the kernel what has been reduced to one pixel of the window.

  The shifts themselves are never made. As the logits are linear in the shifts,

    q · k_i = Σ_p Σ_c (q_c k_c(p)) W_pci + Σ_c q_c b_ci

  is a product of matrices for each pixel p of the window, and likewise Σ_i a_i
  v_i.
  """
  wide = jnp.promote_types(query.dtype, jnp.float32)
  with jax.named_scope("logits"):
    logits = jnp.einsum(
      "bhwnd,ndi->bhwni", query.astype(wide), key_bias.astype(wide)
    )
    logits = _add_products(logits, query, key, kernel)
  with jax.named_scope("softmax"):
    weights = nn.softmax(logits).astype(value.dtype)
  with jax.named_scope("values"):
    return _mix(weights, value, value_kernel, value_bias)


def _side_by_side(query, key, value, *parameters):
  """Computes `_products` of all heads together, for wide matrix units.

  The channels of all heads stay side by side: the matrices have the kernel
  once per head, in blocks on their diagonal.
  """
  shape = query.shape
  heads, shifts = shape[3], parameters[0].shape[-1]
  wide = jnp.promote_types(query.dtype, jnp.float32)
  query, key, value = (x.reshape(*shape[:3], -1) for x in (query, key, value))
  kernel, key_bias, value_kernel, value_bias = (
    _blocks(x, heads) for x in parameters
  )
  with jax.named_scope("logits"):
    logits = jnp.einsum(
      "bhwc,ci->bhwi", query.astype(wide), key_bias.astype(wide)
    )
    logits = _add_products(logits, query, key, kernel)
  with jax.named_scope("softmax"):
    # With pixels last: vectors of a TPU would hold only the shifts of a head.
    weights = logits.reshape(-1, heads, shifts)
    weights = nn.softmax(jnp.moveaxis(weights, 0, -1), axis=1)
    weights = jnp.moveaxis(weights, -1, 0).astype(value.dtype)
    weights = weights.reshape(logits.shape)
  with jax.named_scope("values"):
    return _mix(weights, value, value_kernel, value_bias).reshape(shape)


def _add_products(logits, query, key, kernel):
  """Adds Σ_p (q k(p)) W_p, for maps of any dimensions between width and
  channels."""
  for pixel, matrix in _window(key, kernel):
    logits += jnp.einsum(
      "...c,ci->...i",
      query * pixel,
      matrix,
      preferred_element_type=logits.dtype,
    )
  return logits


def _mix(weights, value, kernel, bias):
  """Returns Σ_p v(p) (a W_pᵀ) + a bᵀ, for maps as `_add_products`."""
  wide = jnp.promote_types(weights.dtype, jnp.float32)

  def times(matrix):
    # A sum in the wide type is made where the product is.
    return jnp.einsum(
      "...i,ci->...c", weights, matrix, preferred_element_type=wide
    )

  output = times(bias)
  for pixel, matrix in _window(value, kernel):
    output += pixel.astype(wide) * times(matrix)
  return output


def _window(x, kernel):
  """Yields the map and the kernel's matrix for each pixel of a window."""
  matrices = kernel.reshape(-1, *kernel.shape[2:])
  return zip(_pixels(x, kernel.shape[0]), matrices, strict=True)


def _pixels(x, size):
  """Yields the map as seen at each pixel of a window."""
  height, width = x.shape[1:3]
  border = size // 2, size // 2
  x = jnp.pad(x, ((0, 0), border, border, *[(0, 0)] * (x.ndim - 3)))
  for row, col in np.ndindex(size, size):
    yield x[:, row : row + height, col : col + width]


def _blocks(x, heads):
  """Puts blocks on the diagonal: `[..., d, shifts]` → `[..., heads · d, heads ·
  shifts]`, where the biases of keys have a block for each head already."""
  if x.ndim != 3:
    x = jnp.stack([x] * heads, axis=-3)
  blocks = jnp.eye(heads, dtype=x.dtype)[:, None, :, None] * x[..., None, :]
  return blocks.reshape(*x.shape[:-3], heads * x.shape[-2], -1)


def _convolution(query, key, value, kernel, key_bias, value_kernel, value_bias):
  """Makes all shifts by a depthwise convolution."""
  wide = jnp.promote_types(query.dtype, jnp.float32)
  query = jnp.moveaxis(query, 3, 1)
  with jax.named_scope("shifts"):
    keys = _convolve(key, kernel).astype(wide) + key_bias[:, None, None]
    values = _convolve(value, value_kernel).astype(wide) + value_bias
  with jax.named_scope("logits"):
    logits = jnp.einsum("bnhwd,bnhwdi->bnhwi", query.astype(wide), keys)
  with jax.named_scope("softmax"):
    weights = nn.softmax(logits)
  with jax.named_scope("values"):
    output = jnp.einsum("bnhwi,bnhwdi->bnhwd", weights, values)
  return jnp.moveaxis(output, 1, 3)


def _convolve(x, kernel):
  """Maps `[batch, height, width, heads, d]` to `[batch, heads, height, width,
  d, shifts]`."""
  batch, height, width, heads, dim = x.shape
  size = kernel.shape[0]
  x = jnp.moveaxis(x, 3, 1).reshape(-1, height, width, dim)
  x = lax.conv_general_dilated(
    x,
    kernel.reshape(size, size, 1, -1),
    (1, 1),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=dim,
  )
  return x.reshape(batch, heads, height, width, dim, -1)


_FORMS = {
  "slices": _slices,
  "products": _products,
  "side_by_side": _side_by_side,
  "pallas_tpu": pallas_slide.attend,
  "convolution": _convolution,
}
