"""Cycles and bytes of Pallas kernels, and both from the compiler."""

import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from halonet.tpu import schedules, step_cost
from halonet.tpu.schedules import count_cycles

# Two bundles before the loop over the grid, which has four and in them a loop
# of two, and one after it. There is a branch forwards, too.
SCHEDULE = """
= control target key start
LH: loop header
= control target key end

     0   :  { %s1 = inlined_call_operand.hbm [shape: f32[8,128], index: 0] }
   0x1   :  { %3 = vsyncpa [#allocation3], 0 }
   0x2 LB: > { %5 = sbr.rel (%p9) target bundleno = 6 (0x6), region = 28 }
   0x3 LB: >> { %p1 = scmp.ge.s32.totalorder %s2_s3, 7 /* loop exit test */ }
   0x4   : >> { %6 = sbr.rel (!%p1) target bundleno = 3 (0x3), region = 30 }
   0x5 PF: > { %p2 = scmp.ge.s32.totalorder %s4_s5, GRID /* loop exit test */
stride: 1 */  ;;  %7 = sbr.rel (!%p2) target bundleno = 2 (0x2), region = 3 }
   0x6   :  { %8 = vsyncpa [#allocation3], 1 }
"""


@pytest.mark.parametrize(
  "limit, steps, cycles",
  [
    # Two turns more than steps fill and drain the pipeline.
    ("18", 16, 2 + 16 * (2 + 7 * 2) + 1),
    # Two cores share the steps.
    ("10", 16, 2 + 8 * (2 + 7 * 2) + 1),
    # A loop of the kernel's own, without a grid.
    ("5", 1, 2 + 5 * (2 + 7 * 2) + 1),
    ("%s77", 16, None),
  ],
)
def test_bundles_count_as_often_as_their_loops_turn(limit, steps, cycles):
  schedule = SCHEDULE.replace("GRID", limit)
  assert count_cycles(schedule, steps) == cycles


PROGRAM = """
import json, pathlib, sys
import jax, jax.numpy as jnp
from flax import linen as nn
from jax.experimental import pallas as pl
from jax.experimental import topologies
from jax.sharding import PartitionSpec
from halonet.tpu import compiler, schedules
from halonet.parallel import make_mesh, replicated

def kernel(x, y, out):
  out[...] = jnp.dot(x[...], y[...], preferred_element_type=jnp.float32)

def product(x, y):
  rows, cols = x.shape[0], y.shape[1]
  return pl.pallas_call(
    kernel,
    grid=(rows // 256,),
    in_specs=[
      pl.BlockSpec((256, x.shape[1]), lambda i: (i, 0)),
      pl.BlockSpec(y.shape, lambda i: (0, 0)),
    ],
    out_specs=pl.BlockSpec((256, cols), lambda i: (i, 0)),
    out_shape=jax.ShapeDtypeStruct((rows, cols), jnp.float32),
    name="product",
  )(x, y)

topology = topologies.get_topology_desc(
  platform="tpu", topology_name="v5e:2x2"
)
mesh = make_mesh(topology.devices)
sharded = jax.shard_map(
  product, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(),
  check_vma=False,
)

@jax.jit
def step(params, x):
  with jax.named_scope("layer1"):
    x = sharded(x, params["layer1"]["kernel"])
  with jax.named_scope("layer2"):
    x = sharded(x.astype(jnp.bfloat16), params["layer2"]["kernel"])
    x = jax.lax.fori_loop(0, 3, lambda _, x: sharded(
      x.astype(jnp.bfloat16), params["layer2"]["kernel"]), x)
  return jnp.tanh(x).sum()

def shape(*dims):
  return jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=replicated(mesh))

params = {
  "layer1": {"kernel": shape(512, 128)},
  "layer2": {"kernel": shape(128, 128)},
}
arguments = params, shape(2048, 512)
result = {
  "analysis": compiler.analyse(step, arguments, "", mesh),
  "counts": schedules.measure(step, arguments, mesh, sys.argv[1]),
}
pathlib.Path(sys.argv[2]).write_text(json.dumps(result))
"""


def test_bytes_of_a_block_count_while_it_is_seen():
  def kernel(x, y, z, out):
    out[...] = x[...] + y[...] + z[...]

  def block(index):
    return pl.BlockSpec((8, 64), index)

  call = pl.pallas_call(
    kernel,
    grid=(2, 3),
    in_specs=[
      block(lambda i, j: (i, j)),  # six loads
      block(lambda i, j: (i, 0)),  # two
      block(lambda i, j: (0, j)),  # six, as j begins again
    ],
    out_specs=block(lambda i, j: (0, 0)),  # one store
    out_shape=jax.ShapeDtypeStruct((8, 64), jnp.bfloat16),
  )
  x = jnp.zeros((16, 192), jnp.bfloat16)
  (equation,) = jax.make_jaxpr(call)(x, x, x).eqns
  # A block of 64 channels takes as much as one of 128.
  assert schedules._hbm_bytes(equation.params["grid_mapping"]) == (
    (6 + 2 + 6 + 1) * 8 * 128 * 2
  )


@pytest.mark.slow
def test_kernels_of_a_program_are_counted_by_their_schedules(tmp_path):
  if not step_cost.available():
    pytest.skip(f"needs {step_cost.required_package()}")
  dump, result = tmp_path / "dump", tmp_path / "result.json"
  subprocess.run(
    [sys.executable, "-c", textwrap.dedent(PROGRAM), str(dump), str(result)],
    env=step_cost.environment(str(dump)),
    check=True,
    capture_output=True,
  )
  result = json.loads(result.read_text())
  counts = result["counts"]
  assert counts.keys() == {
    "product bf16[2048,512],bf16[512,128]>f32[2048,128]",
    "product bf16[2048,128],bf16[128,128]>f32[2048,128]",
  }
  large, small = (count["cycles"] for count in counts.values())
  # A v5e has four units of 128 × 128, which cannot be faster than this.
  sizes = [count["hbm_bytes"] for count in counts.values()]
  assert sizes[0] == 2048 * 512 * 2 + 512 * 128 * 2 + 2048 * 128 * 4
  assert large > 2048 * 512 * 128 / (4 * 128 * 128)
  assert large < 20 * 2048 * 512 * 128 / (4 * 128 * 128)
  assert small < large
  program = result["analysis"].pop("program")
  found = step_cost.complete(
    step_cost.StepCost(
      topology="v5e:2x2", step="train", per_core_batch=1, **result["analysis"]
    ),
    program,
    1,
    counts,
  )
  calls = {kernel.layer: [] for kernel in found.kernels}
  for kernel in found.kernels:
    calls[kernel.layer].append((kernel.executions, kernel.cycles))
  assert calls["layer1"] == [(1, large)]
  assert sorted(calls["layer2"]) == [(1, small), (3, 3 * small)]
  layers = {layer.name: layer.cycles for layer in found.layers}
  assert layers["layer2"] >= 4 * small
  assert found.cycles == sum(layers.values())
