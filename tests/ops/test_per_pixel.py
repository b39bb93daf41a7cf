"""Per-pixel local attention against a float64 loop over pixels."""

import functools
import importlib
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from halonet.ops import arguments
from halonet.ops.attention import blocked_local_attention, per_pixel_attention
from tests.ops import reference
from tests.ops.test_attention import relative_error, value_and_gradients

IMPLEMENTATIONS = ["direct", "xla"]


def case(shape, window_size, **overrides):
  return dict(
    shape=shape,
    window_size=window_size,
    value_dim=3,
    relative_dims=(shape[-1] // 2,) * 2,
    content=True,
    mask_padding=True,
    seed=0,
  ) | dict(overrides)


@st.composite
def cases(draw):
  """Shapes and options; the arrays follow from the seed."""
  dim = draw(st.sampled_from([2, 4]))
  sizes = (1, 2), (1, 11), (1, 11), (1, 3)  # Maps of one block and of four.
  return case(
    (*(draw(st.integers(*size)) for size in sizes), dim),
    draw(st.integers(1, 8)),
    value_dim=draw(st.integers(1, 5)),
    relative_dims=draw(
      st.sampled_from([(dim // 2, dim // 2), (dim, dim), (1, dim - 1), None])
    ),
    content=draw(st.sampled_from([True, True, False])),
    mask_padding=draw(st.booleans()),
    seed=draw(st.integers(0, 2**16)),
  )


def arrays(case):
  """What there is of the five arrays, an output gradient, and the options."""
  rng = np.random.default_rng(case["seed"])
  *spatial, dim = case["shape"]
  window_size = case["window_size"]
  shapes = dict(query=(*spatial, dim), value=(*spatial, case["value_dim"]))
  if case["content"]:
    shapes["key"] = shapes["query"]
  if case["relative_dims"]:
    for axis, width in zip(
      ("height", "width"), case["relative_dims"], strict=True
    ):
      shapes[f"relative_{axis}"] = window_size, width
  names = ("query", "key", "value", "relative_height", "relative_width")
  inputs = {
    name: jnp.asarray(rng.normal(size=shapes[name]), jnp.float32)
    for name in names
    if name in shapes
  }
  options = dict(window_size=window_size, mask_padding=case["mask_padding"])
  return inputs, rng.normal(size=shapes["value"]).astype(np.float32), options


def attend(names, options, implementation, *inputs):
  given = dict(key=None) | dict(zip(names, inputs, strict=True))
  return per_pixel_attention(**given, **options, implementation=implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@given(case=cases())
@example(case=case((1, 9, 10, 2, 4), 7))
@example(case=case((1, 9, 10, 2, 4), 4))  # Of even size: which side is longer.
@example(case=case((1, 3, 2, 1, 4), 8, mask_padding=False))  # Larger than all.
@example(case=case((1, 5, 9, 1, 4), 3, content=False))
@example(case=case((1, 5, 9, 1, 4), 3, relative_dims=None))
@example(case=case((1, 5, 9, 1, 4), 3, content=False, relative_dims=None))
@example(case=case((2, 1, 1, 1, 4), 1))
@settings(max_examples=8)
def test_matches_the_loop(implementation, case):
  inputs, output_gradient, options = arrays(case)
  attention = functools.partial(attend, list(inputs), options, implementation)
  output, gradients = value_and_gradients(
    attention, inputs.values(), output_gradient
  )
  given = dict(key=None) | inputs | options
  assert relative_error(output, reference.per_pixel_attention(**given)) <= 1e-5
  expected = reference.per_pixel_attention(
    **given, output_gradient=output_gradient
  )
  # Relative to the largest of all: some are zero but for rounding.
  scale = max(np.abs(gradient).max() for gradient in expected)
  for actual, wanted in zip(gradients, expected, strict=True):
    assert np.abs(actual - wanted).max() <= 1e-5 * max(scale, 1e-3)


EVEN = case((1, 9, 10, 2, 8), 4, value_dim=8)
ODD = case((2, 9, 6, 2, 8), 5, value_dim=8, mask_padding=False)


@pytest.mark.parametrize(
  "implementation, case",
  [
    *itertools.product(
      ("xla_chunked", "xla_packed", "pallas_tpu", "pallas_gpu"), (EVEN, ODD)
    ),
    # What CPUs and TPUs take by themselves, and what these may lack.
    *itertools.product(
      ("xla_chunked", "xla_packed"),
      (EVEN | dict(content=False), ODD | dict(relative_dims=None)),
    ),
  ],
  ids=str,
)
def test_every_implementation_has_these_windows(implementation, case):
  inputs, output_gradient, options = arrays(case)
  attention = functools.partial(attend, list(inputs), options, implementation)
  output, gradients = value_and_gradients(
    attention, inputs.values(), output_gradient
  )
  given = dict(key=None) | inputs | options
  expected = [
    reference.per_pixel_attention(**given),
    *reference.per_pixel_attention(**given, output_gradient=output_gradient),
  ]
  for actual, wanted in zip((output, *gradients), expected, strict=True):
    assert relative_error(actual, wanted) <= 1e-5


def test_is_the_masked_window_of_blocks_of_any_size():
  inputs, _, options = arrays(case((1, 9, 7, 2, 4), 5))
  rows, cols = inputs.pop("relative_height"), inputs.pop("relative_width")
  expected = reference.per_pixel_attention(
    **inputs, relative_height=rows, relative_width=cols, **options
  )
  for block_size, form in ((1, "xla"), (3, "xla"), (8, "direct")):
    tables = (jnp.pad(x, ((block_size - 1,) * 2, (0, 0))) for x in (rows, cols))
    output = blocked_local_attention(
      *inputs.values(),
      *tables,
      block_size=block_size,
      halo_size=2,
      mask_window=True,
      implementation=form,
    )
    assert relative_error(output, expected) <= 1e-5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@given(
  window_size=st.integers(2, 6),
  move=st.tuples(st.integers(-6, 6), st.integers(-6, 6)),
  mask_padding=st.booleans(),
  content=st.booleans(),
  seed=st.integers(0, 2**16),
)
@settings(max_examples=8)
def test_moves_with_the_map(
  implementation, window_size, move, mask_padding, content, seed
):
  """Any number of pixels: away from the border nothing else changes."""
  inputs, _, options = arrays(
    case(
      (1, 20, 19, 2, 4),
      window_size,
      mask_padding=mask_padding,
      content=content,
      seed=seed,
    )
  )
  attention = functools.partial(attend, list(inputs), options, implementation)
  moved = [
    jnp.roll(x, move, axis=(1, 2)) if x.ndim == 5 else x
    for x in inputs.values()
  ]
  wanted = jnp.roll(attention(*inputs.values()), move, axis=(1, 2))
  # What has come from the other side of the map, and its neighbours, is not
  # compared; nor are those of the border itself.
  rows, cols = (
    slice(window_size + max(by, 0), length - window_size + min(by, 0))
    for by, length in zip(move, (20, 19), strict=True)
  )
  np.testing.assert_allclose(
    attention(*moved)[:, rows, cols], wanted[:, rows, cols], atol=1e-5
  )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_is_within_its_precision(implementation):
  inputs, _, options = arrays(case((1, 9, 7, 2, 16), 5))
  inputs = {name: x.astype(jnp.bfloat16) for name, x in inputs.items()}
  inputs["query"] *= 0.25
  output = per_pixel_attention(
    **inputs, **options, implementation=implementation
  )
  assert output.dtype == jnp.bfloat16
  expected = reference.per_pixel_attention(**inputs, **options)
  assert relative_error(output, expected) <= 8 * 2**-9


@pytest.mark.parametrize("window_size", [7, 11])
def test_direct_needs_a_quarter_of_what_all_windows_do(
  window_size, monkeypatch
):
  """Forwards and backwards, of the memory that XLA plans with."""
  monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[2] / "scripts")
  gathered = importlib.import_module("bench_attention").gathered
  direct = functools.partial(
    per_pixel_attention,
    window_size=window_size,
    mask_padding=False,
    implementation="direct",
  )
  shapes = [(1, 28, 28, 4, 8)] * 3 + [(window_size, 4)] * 2
  shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]

  def gradients(attention):
    return jax.grad(lambda *x: (attention(*x) ** 2).sum(), argnums=range(5))

  inputs, _, options = arrays(
    case((1, 9, 8, 4, 8), window_size, value_dim=8, mask_padding=False)
  )
  np.testing.assert_allclose(
    gathered(*inputs.values()),
    reference.per_pixel_attention(**inputs, **options),
    atol=1e-4,
  )
  for change in (lambda attention: attention, gradients):
    needs = [
      jax.jit(change(attention)).lower(*shapes).compile().memory_analysis()
      for attention in (gathered, direct)
    ]
    assert needs[1].temp_size_in_bytes <= needs[0].temp_size_in_bytes / 4


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(window_size=0), "window_size is 0; it must be a whole number of"),
    (dict(window_size=5), "window_size 5 asks for 5 rows"),
    (dict(relative_width=None), "must both be given, or neither"),
    (dict(implementation="blocked"), "one of auto, pallas_tpu, xla_packed"),
  ],
)
def test_impossible_arguments_are_named(changes, words):
  inputs, _, options = arrays(case((1, 4, 4, 1, 4), 3))
  with pytest.raises(ValueError, match=words):
    per_pixel_attention(**inputs | options | changes)


def test_maps_that_do_not_fit_are_named():
  """Where types are not checked, as they are in tests."""
  query, narrow = jnp.zeros((1, 4, 4, 1, 4)), jnp.zeros((1, 4, 3, 1, 4))
  with pytest.raises(
    ValueError, match=r"^query \(.*4\) and value \(.*4\) must"
  ):
    arguments.check_arrays(query, None, narrow)
  with pytest.raises(ValueError, match="query is empty"):
    arguments.check_arrays(query[:, :0], None, query[:, :0])
