"""The fused kernels through the TPU compiler, which needs no TPU."""

import json
import subprocess
import sys

import pytest

from halonet.chips import GENERATIONS
from halonet.tpu import step_cost

PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from halonet.layers.halo import HaloAttention
from halonet.layers.per_pixel import PerPixelAttention
from halonet.parallel import batch_sharding, make_mesh, replicated

name, options, fields = map(json.loads, sys.argv[1:4])
mesh = make_mesh(topologies.get_topology_desc(
  platform="tpu", topology_name=name, **options
).devices)
kind = PerPixelAttention if "window_size" in fields else HaloAttention
layer = kind(dtype=jnp.bfloat16, **fields)

def gradients(params, x):
  def loss(params, x):
    return (layer.apply(params, x).astype(jnp.float32) ** 2).mean()
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    return jax.grad(loss, argnums=(0, 1))(params, x)

x = jnp.zeros((1, 8, 8, 64), jnp.bfloat16)
params = jax.eval_shape(layer.init, jax.random.key(0), x)
params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
  x.shape, x.dtype, sharding=replicated(mesh)), params)
x = jax.ShapeDtypeStruct(
  (2 * mesh.size, 19, 16, 64), jnp.bfloat16, sharding=batch_sharding(mesh)
)
text = jax.jit(gradients).lower(params, x).compile().as_text()
print("CALLS", text.count('custom_call_target="tpu_custom_call"'))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  "fields",
  [
    dict(block_size=8, halo_size=3),
    dict(block_size=10, halo_size=3, stride=2, value_features=256),
    dict(block_size=14, halo_size=2, mask_window=True, mask_padding=False),
    dict(window_size=14),
  ],
)
@pytest.mark.parametrize(
  "generation", [g for g, chip in GENERATIONS.items() if chip.vector_memory]
)
def test_kernels_compile_for_tpus(generation, fields):
  if not step_cost.available():
    pytest.skip(f"needs {step_cost.required_package()}")
  chip = GENERATIONS[generation]
  result = subprocess.run(
    [
      sys.executable,
      "-c",
      PROGRAM,
      json.dumps(chip.topology),
      json.dumps(chip.compiler_options),
      json.dumps(dict(heads=4) | fields),
    ],
    env=step_cost.environment(),
    capture_output=True,
    text=True,
  )
  assert "CALLS 2" in result.stdout, result.stderr[-2000:]
