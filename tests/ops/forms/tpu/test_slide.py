"""The kernels of slide attention, interpreted, against loops and XLA."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from halonet.ops import dispatch, shifted
from halonet.ops.forms.form import Place
from halonet.ops.forms.tpu.slide_tiling import SlideTiling, fit
from halonet.ops.shifted import slide_attention
from halonet.parallel import batch_sharding, make_mesh
from tests.ops.test_shifted import (
  GIVEN,
  arrays,
  error,
  loop,
  single,
)

CASES = [  # batch, height, width, heads, head_dim, window, parameters
  (2, 5, 4, 3, 4, 3, "separate"),
  (1, 4, 8, 2, 3, 3, "biased"),  # a map without empty columns
  (1, 1, 1, 1, 3, 3, "shared"),
  (1, 3, 2, 2, 3, 1, "separate"),
  (1, 2, 9, 3, 64, 3, "separate"),  # a group with a single head
  (8, 3, 2, 2, 3, 3, "shared"),  # eight images in sublanes
  (8, 2, 3, 5, 32, 3, "separate"),  # the same, in two groups
]
SLOW = [
  (2, 3, 7, 2, 3, 5, "separate"),
  (3, 6, 5, 9, 16, 3, "shared"),  # two registers of logits
  (16, 4, 6, 2, 8, 3, "separate"),  # two grid steps
  (3, 40, 43, 1, 8, 3, "biased"),  # rows in several turns
]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]


def differentiated(implementation, inputs, weight, window):
  """Returns the output and the gradients of all inputs."""

  def loss(inputs):
    output = slide_attention(
      **inputs, window_size=window, implementation=implementation
    )
    return (output * weight).sum(), output

  inputs = {name: jnp.asarray(x) for name, x in inputs.items()}
  call = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (_, output), gradients = call(inputs)
  return output, gradients


@pytest.mark.parametrize(
  "batch, height, width, heads, dim, window, given", CASES
)
def test_matches_the_loop_and_the_gradients_of_xla(
  batch, height, width, heads, dim, window, given
):
  inputs, weight = arrays(
    height, width, window, GIVEN[given], heads, dim, batch=batch
  )
  inputs["query"] *= dim**-0.5
  output, gradients = differentiated(
    "pallas_tpu", single(inputs), weight, window
  )
  if height * width < 100:
    assert error(output, loop(**inputs, window_size=window)) <= 1e-5
  with jax.enable_x64():
    expected, wanted = differentiated("products", inputs, weight, window)
  assert error(output, np.asarray(expected)) <= 1e-5
  for name, x in gradients.items():
    assert error(x, np.asarray(wanted[name])) <= 1e-5, name


@pytest.mark.parametrize("batch", [1, 8])
def test_bfloat16_is_as_precise_as_xla(batch):
  inputs, weight = arrays(6, 5, 3, heads=2, dim=16, batch=batch)
  inputs["query"] *= 16**-0.5
  narrow = {name: jnp.asarray(x, jnp.bfloat16) for name, x in inputs.items()}
  wide = {name: np.asarray(x, np.float32) for name, x in narrow.items()}
  exact = differentiated("products", wide, weight, 3)
  errors = []
  for name in ("pallas_tpu", "side_by_side"):
    found = differentiated(name, narrow, weight, 3)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(found))
    errors.append(jax.tree.map(error, found, exact))
  output, gradients = errors[0]
  assert output <= 1.5 * errors[1][0]
  for name, x in gradients.items():
    assert x <= 3 * max(errors[1][1][name], 4e-3), name


def test_logits_may_be_large():
  """The maximum of each head is subtracted, not that of its neighbours."""
  inputs, weight = arrays(4, 3, 3, heads=3, dim=4)
  inputs["query"] *= np.array([1e-2, 1e3, 1])[:, None]
  output, gradients = differentiated("pallas_tpu", single(inputs), weight, 3)
  assert error(output, loop(**inputs, window_size=3)) <= 1e-3
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def test_devices_share_the_batch():
  inputs, weight = arrays(3, 4, 3, batch=4)
  inputs = single(inputs)
  expected = differentiated("products", inputs, weight, 3)
  mesh = make_mesh(jax.devices()[:4])
  maps = dict.fromkeys(("query", "key", "value"), batch_sharding(mesh))
  with jax.set_mesh(mesh):
    found = differentiated(
      "pallas_tpu",
      {k: jax.device_put(x, maps.get(k)) for k, x in inputs.items()},
      weight,
      3,
    )
  for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    assert error(x, np.asarray(y)) <= 1e-5


def test_it_has_no_forward_mode():
  inputs, _ = arrays(3, 4, 3)
  inputs = single(inputs)
  call = functools.partial(
    slide_attention, window_size=3, implementation="pallas_tpu"
  )
  with pytest.raises(TypeError, match="custom_vjp"):
    jax.jvp(lambda x: call(**inputs | {"key": x}), *[(inputs["key"],)] * 2)


def chosen(kind, shape, dtype=jnp.bfloat16, window=3, name="auto", rows=1):
  """Returns the form that serves on four devices of a kind."""
  mesh = AbstractMesh(
    (4, rows),
    ("data", "rows"),
    axis_types=(AxisType.Auto,) * 2,
    abstract_device=AbstractDevice(
      device_kind=kind, num_cores=1, platform=kind[:3].lower()
    ),
  )
  x = jax.ShapeDtypeStruct(shape, dtype)
  with jax.sharding.use_abstract_mesh(mesh):
    return shifted._choose(name, False, x, x, x, window)


@pytest.mark.parametrize(
  "kind, options, name",
  [
    ("TPU v5 lite", {}, "pallas_tpu"),
    ("TPU v6 lite", dict(window=5), "pallas_tpu"),
    ("TPU v5", dict(dtype=jnp.float32), "pallas_tpu"),
    ("TPU v4", dict(shape=(32, 28, 28, 6, 32)), "pallas_tpu"),
    ("TPU v3", {}, "side_by_side"),
    ("TPU v3", dict(shape=(32, 14, 14, 4, 32)), "pallas_tpu"),
    ("cpu", {}, "products"),
    ("TPU v5 lite", dict(dtype=jnp.float16), "side_by_side"),
    ("TPU v5 lite", dict(window=7), "side_by_side"),
    ("TPU v5 lite", dict(shape=(32, 300, 500, 3, 32)), "side_by_side"),
    ("TPU v5 lite", dict(shape=(32, 56, 56, 3, 48)), "side_by_side"),
    ("TPU v5 lite", dict(shape=(30, 56, 56, 3, 32)), "side_by_side"),
    ("TPU v5 lite", dict(rows=2), "side_by_side"),
  ],
)
def test_auto_takes_it_where_it_serves(kind, options, name):
  options = dict(shape=(32, 56, 56, 3, 32)) | options
  assert chosen(kind, **options) == name


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(kind="TPU v2"), "TPU v2 is not one of TPU v3, TPU v4, TPU v5e"),
    (dict(window=7), "it takes windows of up to 5 pixels, not 7"),
    (dict(shape=(4, 300, 500, 3, 32)), "the map does not fit in the vector"),
    (dict(shape=(4, 8, 8, 3, 48)), "heads are 48 wide, which does not divide"),
    (dict(shape=(6, 8, 8, 3, 32)), "a batch of 6 does not split over 4"),
  ],
)
def test_refusals(options, words):
  options = dict(kind="TPU v5 lite", shape=(4, 8, 8, 3, 32)) | options
  with pytest.raises(ValueError) as caught:
    chosen(name="pallas_tpu", **options)
  assert words in str(caught.value)


def test_several_tpus_without_a_mesh_take_xla(monkeypatch):
  empty = jax.sharding.get_abstract_mesh()
  x = jax.ShapeDtypeStruct((4, 8, 8, 3, 32), jnp.bfloat16)
  for devices, name in ((1, "pallas_tpu"), (4, "side_by_side")):
    place = Place(empty, "tpu", "TPU v5 lite", devices)
    monkeypatch.setattr(Place, "current", lambda place=place: place)
    assert shifted._choose("auto", False, x, x, x, 3) == name


def test_kernels_are_left_where_another_form_is_forced():
  options = dict(kind="TPU v5 lite", shape=(4, 8, 8, 3, 32))
  for name in ("xla", "xla_chunked"):
    with dispatch.implementation(name):
      assert chosen(**options) == "side_by_side"
  for name in ("auto", "pallas_tpu"):
    with dispatch.implementation(name):
      assert chosen(**options) == "pallas_tpu"


def test_the_log_says_why_kernels_do_not_serve(caplog):
  caplog.set_level(logging.INFO)
  dispatch.log_once.cache_clear()
  for _ in range(2):
    chosen("TPU v5 lite", (4, 8, 8, 3, 48))
    chosen("TPU v5 lite", (4, 8, 8, 3, 32))
  why, served = caplog.records
  assert why.levelname == "WARNING"
  assert "side_by_side, not pallas_tpu (heads are 48 wide" in why.getMessage()
  assert served.getMessage() == "slide attention: pallas_tpu"


@pytest.mark.parametrize(
  "batch, width, images", [(8, 28, 8), (16, 28, 8), (8, 56, 1), (4, 28, 1)]
)
def test_images_lie_in_sublanes_where_columns_leave_gaps(batch, width, images):
  tiling = fit((batch, 28, width, 6, 32), 3, jnp.dtype(jnp.bfloat16), 128 << 20)
  assert isinstance(tiling, SlideTiling) and tiling.images == images
