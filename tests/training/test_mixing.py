"""Mixing on the devices against a loop over the images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from halonet.training.mixing import mix
from jax.sharding import NamedSharding, PartitionSpec

BATCH, SIZE, CLASSES = 16, 12, 5


def batch(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  images = rng.normal(size=(BATCH, SIZE, SIZE, 3))
  targets = rng.dirichlet(np.ones(CLASSES), BATCH)
  share = np.repeat(rng.uniform(size=BATCH // 2), 2)
  boxes = [
    [0, 0, 0, 0],
    [2, 3, 9, 5],
    [0, 0, SIZE, SIZE],
    [4, 0, 4, 9],  # Empty.
    [0, 7, 5, SIZE],
    [0, 0, 0, 0],
    [11, 11, 12, 12],
    [3, 6, 8, 6],  # Empty.
  ]
  box = np.repeat(np.array(boxes, np.int32), 2, 0)
  return (
    jnp.asarray(images, dtype),
    jnp.asarray(targets, jnp.float32),
    jnp.asarray(share, jnp.float32),
    jnp.asarray(box),
  )


def loop(images, targets, share, box):
  images, targets, share = (
    np.asarray(x, np.float64) for x in (images, targets, share)
  )
  mixed, mixed_targets = images.copy(), targets.copy()
  for own in range(len(images)):
    other = own + 1 if own % 2 == 0 else own - 1
    part = share[own]
    mixed_targets[own] = part * targets[own] + (1 - part) * targets[other]
    top, left, bottom, right = box[own]
    if (bottom - top) * (right - left) > 0:
      cut = np.s_[top:bottom, left:right]
      mixed[own][cut] = images[other][cut]
    else:
      mixed[own] = part * images[own] + (1 - part) * images[other]
  return mixed, mixed_targets


@pytest.mark.parametrize(
  ("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 0.01)]
)
def test_equals_a_loop_over_images(dtype, tolerance):
  arrays = batch(dtype)
  images, targets = jax.jit(mix)(*arrays)
  assert images.dtype == dtype
  assert targets.dtype == jnp.float32
  expected, expected_targets = loop(*arrays)
  actual = np.asarray(images, np.float64)
  np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)
  np.testing.assert_allclose(targets, expected_targets, atol=1e-6)


def test_the_whole_share_changes_no_bit():
  images, targets, share, box = batch()
  mixed = mix(images, targets, jnp.ones_like(share), jnp.zeros_like(box))
  np.testing.assert_array_equal(mixed[0], images)
  np.testing.assert_array_equal(mixed[1], targets)


def test_devices_mix_without_communication():
  mesh = jax.make_mesh((8,), ("data",))
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  arrays = batch()
  compiled = (
    jax.jit(mix, in_shardings=sharding, out_shardings=sharding)
    .lower(*arrays)
    .compile()
  )
  for collective in ("all-", "collective-permute", "reduce-scatter"):
    assert collective not in compiled.as_text()
  actual = compiled(*jax.device_put(arrays, sharding))
  for one, eight in zip(mix(*arrays), actual, strict=True):
    np.testing.assert_allclose(one, eight, atol=1e-6)
