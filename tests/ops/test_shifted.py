"""Slide attention against a float64 loop over pixels and shifts."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halonet.ops.shifted import IMPLEMENTATIONS, fixed_shifts, slide_attention

# "auto" is one of them; the kernels' tests are in forms/tpu/test_slide.py.
FORMS = [name for name in IMPLEMENTATIONS if name not in ("auto", "pallas_tpu")]
LEARNED = [name for name in FORMS if name != "slices"]
PARAMETERS = ("kernel", "bias", "table", "value_kernel", "value_bias")


GIVEN = {
  "fixed": (),
  "biased": ("bias", "table"),
  "shared": ("kernel", "bias", "table"),
  "separate": PARAMETERS,
}
# Even and odd maps, smaller than the window, and of one pixel.
CASES = [(5, 4, 3, given) for given in GIVEN]
CASES += [
  (*size, given)
  for size in ((3, 7, 3), (1, 1, 3), (3, 4, 5), (2, 3, 7), (3, 2, 1))
  for given in ("biased", "separate")
]


def arrays(
  height, width, window, given=PARAMETERS, heads=2, dim=3, seed=0, batch=2
):
  """Draws three maps, the parameters that are given, and a weight of the
  output."""
  rng = np.random.default_rng(seed)
  shifts = window**2
  shapes = {
    "kernel": (window, window, dim, shifts),
    "bias": (dim, shifts),
    "table": (heads, shifts),
  }
  shapes["value_kernel"], shapes["value_bias"] = shapes["kernel"], (dim, shifts)
  maps = dict.fromkeys(
    ("query", "key", "value"), (batch, height, width, heads, dim)
  )
  shapes = maps | {name: shapes[name] for name in given}
  return {k: rng.normal(size=s) for k, s in shapes.items()}, rng.normal(
    size=maps["query"]
  )


def loop(
  query,
  key,
  value,
  kernel=None,
  bias=None,
  table=None,
  value_kernel=None,
  value_bias=None,
  *,
  window_size,
):
  """Attends pixel by pixel, head by head and shift by shift."""
  height, width, _, dim = query.shape[1:]
  radius = window_size // 2
  value_kernel = kernel if value_kernel is None else value_kernel
  value_bias = bias if value_bias is None else value_bias

  def shifted(x, weights, offset, n, y, x_, head, shift):
    found = np.zeros(dim) if offset is None else offset[:, shift].copy()
    for row, col in itertools.product(range(window_size), repeat=2):
      a, b = y + row - radius, x_ + col - radius
      if not (0 <= a < height and 0 <= b < width):
        continue
      if weights is not None:
        found += weights[row, col, :, shift] * x[n, a, b, head]
      elif (row, col) == divmod(shift, window_size):
        found += x[n, a, b, head]
    return found

  output = np.zeros(query.shape)
  for n, y, x, head in np.ndindex(*query.shape[:-1]):
    q, logits, values = query[n, y, x, head], [], []
    for shift in range(window_size**2):
      place = n, y, x, head, shift
      logit = q @ shifted(key, kernel, bias, *place)
      logits.append(
        logit + (0 if table is None else table[head, shift] * sum(q))
      )
      values.append(shifted(value, value_kernel, value_bias, *place))
    weights = np.exp(np.array(logits) - max(logits))
    output[n, y, x, head] = weights / weights.sum() @ np.array(values)
  return output


def single(inputs):
  return {name: jnp.asarray(x, jnp.float32) for name, x in inputs.items()}


def error(actual, expected):
  scale = max(np.abs(expected).max(), 1e-3)
  return np.abs(np.asarray(actual, np.float64) - expected).max() / scale


@functools.cache
def expected(height, width, window, given):
  inputs, _ = arrays(height, width, window, GIVEN[given])
  return loop(**inputs, window_size=window)


@pytest.mark.parametrize("height, width, window, given", CASES)
@pytest.mark.parametrize("implementation", FORMS)
def test_matches_the_loop(implementation, height, width, window, given):
  if "kernel" in GIVEN[given] and implementation == "slices":
    pytest.skip("it has fixed shifts alone")
  inputs, _ = arrays(height, width, window, GIVEN[given])
  attend = functools.partial(
    slide_attention, window_size=window, implementation=implementation
  )
  output = jax.jit(attend)(**single(inputs))
  assert error(output, expected(height, width, window, given)) <= 1e-5


@pytest.mark.parametrize(
  "implementation, given",
  [("slices", ("bias", "table")), *((name, PARAMETERS) for name in LEARNED)],
)
@pytest.mark.parametrize("height, width, window", [(3, 4, 3), (2, 3, 5)])
def test_derivatives_are_those_of_the_loop(
  height, width, window, implementation, given
):
  """Along random directions: reverse, forward, and central differences."""
  inputs, weight = arrays(height, width, window, given, dim=2)
  rng = np.random.default_rng(1)
  options = dict(window_size=window, implementation=implementation)
  with jax.enable_x64():

    def attend(inputs):
      return (slide_attention(**inputs, **options) * weight).sum()

    given = {name: jnp.asarray(x) for name, x in inputs.items()}
    gradients = jax.jit(jax.grad(attend))(given)
    push = jax.jit(lambda *x: jax.jvp(attend, x[:1], x[1:]))
    for name, x in inputs.items():
      direction = {k: np.zeros_like(v) for k, v in inputs.items()}
      direction[name] = rng.normal(size=x.shape)
      ahead, behind = (
        (
          loop(
            **{k: v + step * direction[k] for k, v in inputs.items()},
            window_size=window,
          )
          * weight
        ).sum()
        for step in (1e-5, -1e-5)
      )
      wanted = (ahead - behind) / 2e-5
      reverse = (np.asarray(gradients[name]) * direction[name]).sum()
      _, forward = push(given, direction)
      np.testing.assert_allclose(reverse, wanted, rtol=1e-6, atol=1e-8)
      np.testing.assert_allclose(forward, reverse, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("implementation", LEARNED)
def test_shared_kernels_have_the_sum_of_both_gradients(implementation):
  inputs, weight = arrays(4, 5, 3, ("kernel", "bias", "table"))
  inputs = single(inputs)

  def loss(kernel, bias, **options):
    output = slide_attention(
      **inputs | dict(kernel=kernel, bias=bias),
      window_size=3,
      implementation=implementation,
      **options,
    )
    return (output * weight).sum()

  parameters = inputs["kernel"], inputs["bias"]
  shared = jax.grad(loss, argnums=(0, 1))(*parameters)
  keys, values = jax.grad(
    lambda keys, values: loss(
      *keys, value_kernel=values[0], value_bias=values[1]
    ),
    argnums=(0, 1),
  )(parameters, parameters)
  for whole, *parts in zip(shared, keys, values, strict=True):
    assert error(whole, sum(np.asarray(x, np.float64) for x in parts)) <= 1e-5


def test_the_sum_of_kernels_is_the_sum_of_shifts():
  """The paper's merging is exact, by linearity."""
  inputs, _ = arrays(5, 4, 3, ("kernel", "bias", "table"))
  learned, fixed = inputs["kernel"], fixed_shifts(3, 3)
  merged = inputs | dict(kernel=learned + fixed)
  wide = loop(**merged, window_size=3)
  output = slide_attention(**single(merged), window_size=3)
  assert error(output, wide) <= 1e-5
  # Without a kernel another form serves, which rounds otherwise.
  np.testing.assert_allclose(
    slide_attention(**single(inputs | dict(kernel=fixed)), window_size=3),
    slide_attention(
      **single({k: x for k, x in inputs.items() if k != "kernel"}),
      window_size=3,
    ),
    rtol=1e-6,
    atol=2e-6,
  )


@pytest.mark.parametrize("implementation", FORMS)
def test_bfloat16_is_within_its_precision(implementation):
  given = () if implementation == "slices" else ("kernel",)
  inputs, _ = arrays(5, 4, 3, (*given, "bias", "table"), dim=8)
  inputs["query"] *= 8**-0.5 / 4
  narrow = {name: jnp.asarray(x, jnp.bfloat16) for name, x in inputs.items()}
  options = dict(window_size=3, implementation=implementation)

  def attend(inputs):
    output = slide_attention(**inputs, **options)
    return output.astype(jnp.float32).sum(), output

  (_, output), gradients = jax.jit(jax.value_and_grad(attend, has_aux=True))(
    narrow
  )
  assert output.dtype == jnp.bfloat16
  assert all(x.dtype == jnp.bfloat16 for x in gradients.values())
  wide = {name: np.asarray(x, np.float64) for name, x in narrow.items()}
  assert error(output, loop(**wide, window_size=3)) <= 16 * 2**-9


def test_products_make_no_shifts():
  """Their memory is far below that of the paper's form."""
  inputs, _ = arrays(28, 28, 3, ("kernel", "bias", "table"), dim=16)
  shapes = {
    k: jax.ShapeDtypeStruct(x.shape, jnp.float32) for k, x in inputs.items()
  }

  def needs(implementation):
    attend = functools.partial(
      slide_attention, window_size=3, implementation=implementation
    )
    compiled = jax.jit(attend).lower(**shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert needs("products") <= needs("convolution") / 2


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(window_size=4), "window_size is 4; it must be odd"),
    (dict(window_size=0), "window_size is 0; it must be a whole number"),
    (dict(window_size=5), "kernel has shape (3, 3, 3, 9); it must be (5, 5"),
    (dict(bias=jnp.zeros((3, 8))), "bias has shape (3, 8); it must be (3, 9)"),
    (dict(table=jnp.zeros((1, 9))), "table has shape (1, 9); it must be (2, 9"),
    (dict(implementation="shifts"), "one of auto, slices, products, side_by"),
    (dict(implementation="slices"), "'slices', which has fixed shifts alone"),
  ],
)
def test_impossible_arguments_are_named(changes, words, unchecked_shapes):
  inputs, _ = arrays(3, 4, 3, ("kernel", "bias"))
  with pytest.raises(ValueError) as caught:
    slide_attention(**single(inputs) | dict(window_size=3) | changes)
  assert words in str(caught.value)
