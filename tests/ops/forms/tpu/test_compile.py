"""The fused kernels through the TPU compiler, which needs no TPU."""

import json
import re
import subprocess
import sys

import pytest

from halonet.chips import GENERATIONS
from halonet.tpu import step_cost

PROGRAM = """
import importlib, json, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from halonet.parallel import batch_sharding, make_mesh, replicated

name, options, kind, shape, fields = map(json.loads, sys.argv[1:])
mesh = make_mesh(topologies.get_topology_desc(
  platform="tpu", topology_name=name, **options
).devices)
module, _, kind = kind.rpartition(".")
kind = getattr(importlib.import_module("halonet.layers." + module), kind)
layer = kind(dtype=jnp.bfloat16, **fields)

def gradients(params, x):
  def loss(params, x):
    return (layer.apply(params, x).astype(jnp.float32) ** 2).mean()
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    return jax.grad(loss, argnums=(0, 1))(params, x)

batch, *shape = shape
x = jnp.zeros((1, *shape), jnp.bfloat16)
params = jax.eval_shape(layer.init, jax.random.key(0), x)
params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
  x.shape, x.dtype, sharding=replicated(mesh)), params)
x = jax.ShapeDtypeStruct(
  (batch * mesh.size, *shape), jnp.bfloat16, sharding=batch_sharding(mesh)
)
text = jax.jit(gradients).lower(params, x).compile().as_text()
print("CALLS", text.count('custom_call_target="tpu_custom_call"'))
"""

HALO, SLIDE = "halo.HaloAttention", "slide.SlideAttention"
SHAPE = 2, 19, 16, 64  # A device's share.


@pytest.mark.slow
@pytest.mark.parametrize(
  "kind, shape, fields",
  [
    (HALO, SHAPE, dict(block_size=8, halo_size=3)),
    (
      HALO,
      SHAPE,
      dict(block_size=10, halo_size=3, stride=2, value_features=256),
    ),
    (
      HALO,
      SHAPE,
      dict(block_size=14, halo_size=2, mask_window=True, mask_padding=False),
    ),
    # Many small tiles.
    (HALO, (1, 28, 28, 192), dict(heads=6, block_size=5, halo_size=1)),
    # Groups of heads; then strips, and on v3 and v4 panels, too.
    (HALO, (1, 32, 16, 256), dict(block_size=8, halo_size=3)),
    (
      HALO,
      (1, 112, 112, 64),
      dict(block_size=14, halo_size=2, value_features=160),
    ),
    # Detection: the last stage in one block, and the first of 1024 pixels.
    (HALO, (1, 32, 32, 512), dict(heads=8, block_size=32, halo_size=3)),
    (HALO, (1, 256, 256, 64), dict(block_size=8, halo_size=3)),
    (
      HALO,
      (1, 256, 256, 128),
      dict(heads=8, block_size=8, halo_size=3, stride=2),
    ),
    (HALO, (1, 128, 128, 128), dict(heads=8, block_size=8, halo_size=3)),
    (
      HALO,
      (1, 64, 64, 512),
      dict(heads=8, block_size=8, halo_size=3, stride=2),
    ),
    (
      HALO,
      (1, 64, 64, 160),
      dict(heads=10, block_size=8, halo_size=3, stride=2),
    ),
    ("per_pixel.PerPixelAttention", SHAPE, dict(window_size=14)),
    (SLIDE, SHAPE, dict()),
    (SLIDE, (1, 7, 13, 64), dict(heads=2, window_size=5)),
    (SLIDE, (8, 14, 9, 192), dict(heads=6)),
  ],
)
@pytest.mark.parametrize(
  "generation", [g for g, chip in GENERATIONS.items() if chip.vector_memory]
)
def test_kernels_compile_for_tpus(generation, kind, shape, fields):
  if not step_cost.available():
    pytest.skip(f"needs {step_cost.required_package()}")
  chip = GENERATIONS[generation]
  split = generation == "v3" and fields.get("block_size") == 32
  if fields.get("window_size") == 5 and generation in ("v3", "v4"):
    pytest.skip("a kernel for windows of 5 does not fit in its vector memory")
  result = subprocess.run(
    [
      sys.executable,
      "-c",
      PROGRAM,
      json.dumps(chip.topology),
      json.dumps(chip.compiler_options),
      json.dumps(kind),
      json.dumps(shape),
      json.dumps(dict(heads=4) | fields),
    ],
    env=step_cost.environment(),
    capture_output=True,
    text=True,
  )
  found = re.search(r"CALLS (\d+)", result.stdout)
  assert found, result.stderr[-2000:]
  # Parts of the heads have kernels of their own.
  assert found[1] == ("16" if split else "2")
