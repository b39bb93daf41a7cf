"""The GPU kernels: lowered for CUDA, which needs no GPU."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core
from jax.sharding import (
  AbstractDevice,
  AbstractMesh,
  AxisType,
  NamedSharding,
  PartitionSpec,
)

from halonet.ops.attention import blocked_local_attention

# JAX says so from 0.11 on.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend")

KERNEL = "__gpu$xla.gpu.triton"
GEOMETRIES = [(8, 3), (10, 3), (12, 2), (14, 2), (8, 4), (32, 3)]


def gpus(devices):
  return AbstractMesh(
    (devices,),
    ("data",),
    axis_types=(AxisType.Auto,),
    abstract_device=AbstractDevice(
      device_kind="NVIDIA H100", num_cores=None, platform="gpu"
    ),
  )


def program(
  block_size,
  halo_size,
  head_dim,
  value_dim,
  dtype="bfloat16",
  gradients=True,
  **options,
):
  """The program for an H100 of a layer on maps that are no whole blocks."""
  shape = (2, 2 * block_size, 2 * block_size - 1, 2)
  tables = [(2 * (block_size + halo_size) - 1, head_dim // 2)] * 2
  widths = (head_dim, head_dim, value_dim)
  attention = functools.partial(
    blocked_local_attention,
    block_size=block_size,
    halo_size=halo_size,
    implementation="pallas_gpu",
    **options,
  )

  def loss(*inputs):
    return attention(*inputs).astype(jnp.float32).sum()

  function = jax.grad(loss, argnums=range(5)) if gradients else attention
  with jax.sharding.use_abstract_mesh(gpus(1)):
    exported = jax.export.export(
      jax.jit(function),
      platforms=["cuda"],
      # Another JAX need not be able to run it later.
      disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(KERNEL)],
    )(
      *(jax.ShapeDtypeStruct((*shape, width), dtype) for width in widths),
      *(jax.ShapeDtypeStruct(table, dtype) for table in tables),
    )
  return exported.mlir_module()


def count_kernels(text):
  return text.count(f"custom_call @{KERNEL}")


@pytest.mark.parametrize(
  ("geometry", "head_dim", "value_dim", "options"),
  [
    ((8, 3), 16, 16, dict()),
    ((10, 3), 8, 24, dict(stride=2, dtype="float32")),
    ((12, 2), 32, 8, dict(mask_window=True)),
    ((14, 2), 16, 64, dict(mask_padding=False, stride=2)),
    ((8, 4), 64, 16, dict(dtype="float32", mask_window=True)),
    ((32, 3), 64, 256, dict(dtype="float32")),
  ],
)
def test_kernels_lower_for_cuda(geometry, head_dim, value_dim, options):
  text = program(*geometry, head_dim, value_dim, **options)
  assert count_kernels(text) == 3


@pytest.mark.slow
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_lower_for_cuda_everywhere(geometry, dtype):
  for head_dim, ratio, stride, masks in itertools.product(
    (8, 16, 32, 64), (1, 4), (1, 2), (False, True)
  ):
    options = dict(dtype=dtype, stride=stride)
    options |= dict(mask_padding=masks, mask_window=not masks)
    widths = head_dim, ratio * head_dim
    text = program(*geometry, *widths, gradients=False, **options)
    assert count_kernels(text) == 1
    assert count_kernels(program(*geometry, *widths, **options)) == 3


def test_every_device_gets_its_part_of_the_batch():
  def loss(*inputs):
    return blocked_local_attention(
      *inputs, block_size=4, halo_size=1, implementation="pallas_gpu"
    ).sum()

  mesh = gpus(4)
  rows = NamedSharding(mesh, PartitionSpec("data"))
  whole = NamedSharding(mesh, PartitionSpec())
  gradients = jax.jit(
    jax.grad(loss, argnums=range(5)), in_shardings=(rows,) * 3 + (whole,) * 2
  )
  maps = jax.ShapeDtypeStruct((12, 4, 5, 1, 8), "float32")
  table = jax.ShapeDtypeStruct((9, 4), "float32")
  with jax.sharding.use_abstract_mesh(mesh):
    traced = gradients.trace(*[maps] * 3, *[table] * 2)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
  kernels = [line for line in text.splitlines() if KERNEL in line]
  assert len(kernels) == 3
  # Keys and values, pixel by pixel, of three images.
  assert all("tensor<3x20x8xf32>, tensor<3x20x8xf32>" in x for x in kernels)


@pytest.mark.parametrize(
  ("default", "dtype", "precision"),
  [
    (None, "float32", jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3),
    ("highest", "float32", (jax.lax.Precision.HIGHEST,) * 2),
    ("tensorfloat32", "float32", (jax.lax.Precision.HIGH,) * 2),
    (None, "bfloat16", None),
  ],
)
def test_float32_is_exact_unless_told_otherwise(default, dtype, precision):
  x = jnp.zeros((1, 4, 4, 1, 8), dtype)
  table = jnp.zeros((9, 4), dtype)
  attention = functools.partial(
    blocked_local_attention,
    block_size=4,
    halo_size=1,
    implementation="pallas_gpu",
  )
  with (
    jax.sharding.use_abstract_mesh(gpus(1)),
    jax.default_matmul_precision(default),
  ):
    jaxpr = jax.make_jaxpr(attention)(x, x, x, table, table)
  (kernel,) = find(jaxpr.jaxpr, "pallas_call")
  products = find(kernel.params["jaxpr"], "dot_general")
  assert [x.params["precision"] for x in products] == [precision] * 2


def find(jaxpr, name):
  """The equations of a primitive, those within others too."""
  found = []
  for equation in jaxpr.eqns:
    if equation.primitive.name == name:
      found.append(equation)
    else:
      for inner in core.jaxprs_in_params(equation.params):
        found.extend(find(inner, name))
  return found
