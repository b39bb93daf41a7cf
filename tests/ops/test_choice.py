"""Who serves a layer: by chip, dtype, shape and devices, told by a mesh."""

import importlib.util
import logging

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from halonet.ops import choice
from halonet.ops.attention import blocked_local_attention
from halonet.ops.pallas.geometry import Geometry


def mesh(kind, devices=4):
  return AbstractMesh(
    (devices,),
    ("data",),
    axis_types=(AxisType.Auto,),
    abstract_device=AbstractDevice(
      device_kind=kind,
      num_cores=1,
      platform="gpu" if kind.startswith("NVIDIA") else kind[:3].lower(),
    ),
  )


def layer(**sizes):
  return Geometry(
    **dict(
      height=64,
      width=64,
      heads=4,
      head_dim=16,
      value_dim=16,
      block_size=8,
      halo_size=3,
      stride=1,
      relative_stride=1,
      mask_padding=True,
      reach=None,
    )
    | sizes
  )


def chosen(kind, implementation, batch=8, dtype="bfloat16", **sizes):
  choice._log.cache_clear()
  dtypes = (jnp.dtype(dtype),) * 3
  with jax.sharding.use_abstract_mesh(mesh(kind)):
    return choice.choose(implementation, layer(**sizes), batch, dtypes)[0]


@pytest.mark.parametrize(
  "kind", ["TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite"]
)
def test_auto_takes_kernels_on_tpus(kind, caplog):
  with caplog.at_level(logging.INFO):
    assert chosen(kind, "auto") == "pallas_tpu"
  assert [record.message for record in caplog.records] == [
    "attention: pallas_tpu"
  ]
  assert chosen(kind, "xla") == "xla"


@pytest.mark.parametrize(
  "arguments, reason",
  [
    (dict(kind="TPU v3"), "TPU v3 is not TPU v4, v5e, v5p or v6e"),
    (dict(dtype="float32"), "it takes bfloat16, not float32"),
    (dict(batch=6), "a batch of 6 does not split over 4 devices"),
    (dict(head_dim=4), "heads are 4 and 16 wide, not multiples of 8"),
    (dict(kind="TPU v4", width=5000), "not even a row of blocks fits"),
  ],
)
def test_what_kernels_cannot_serve_is_said(arguments, reason, caplog):
  arguments = dict(kind="TPU v5 lite") | arguments
  assert chosen(implementation="auto", **arguments) == "xla_packed"
  (record,) = caplog.records
  assert record.levelname == "WARNING" and reason in record.message
  with pytest.raises(ValueError, match="cannot serve this") as error:
    chosen(implementation="pallas_tpu", **arguments)
  assert reason in str(error.value)


def test_a_reason_is_logged_once(caplog):
  chosen("TPU v3", "auto")
  with jax.sharding.use_abstract_mesh(mesh("TPU v3")):
    dtypes = (jnp.dtype("bfloat16"),) * 3
    choice.choose("auto", layer(height=32), 8, dtypes)
  assert len(caplog.records) == 1


@pytest.mark.parametrize(
  "kind, devices, batch, name",
  [
    ("cpu", 1, 8, "xla_chunked"),
    ("cpu", 1, 2, "xla_chunked"),
    ("cpu", 4, 8, "xla"),
    ("NVIDIA H100", 1, 8, "xla"),
  ],
)
def test_auto_elsewhere(kind, devices, batch, name):
  dtypes = (jnp.dtype("float32"),) * 3
  with jax.sharding.use_abstract_mesh(mesh(kind, devices)):
    assert choice.choose("auto", layer(), batch, dtypes)[0] == name


def test_gpu_kernels_are_there_for_the_asking(caplog):
  with caplog.at_level(logging.INFO):
    assert chosen("NVIDIA H100", "pallas_gpu") == "pallas_gpu"
    assert chosen("cpu", "pallas_gpu", dtype="float32") == "pallas_gpu"
  assert [record.message for record in caplog.records] == [
    "attention: pallas_gpu",
    "attention: pallas_gpu, interpreted without a GPU, which is slow",
  ]


@pytest.mark.parametrize(
  "arguments, reason",
  [
    (dict(batch=6), "a batch of 6 does not split over 4 devices"),
    (dict(dtype="float16"), "it takes float32 or bfloat16, not float16"),
    (dict(value_dim=512), "a value takes 512 numbers, more than 256"),
    (
      dict(head_dim=200, halo_size=12),
      "a query with its relative logits takes 264 numbers, more than 256",
    ),
  ],
)
def test_what_gpu_kernels_cannot_serve_is_said(arguments, reason):
  with pytest.raises(ValueError, match=reason):
    chosen("NVIDIA H100", "pallas_gpu", **arguments)


def test_a_jax_without_triton_is_said(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match="has no Triton dialect of Pallas"):
    chosen("NVIDIA H100", "pallas_gpu")


def test_large_maps_are_cut_into_strips_that_fit():
  dtype = jnp.dtype("bfloat16")
  whole = choice._fitting(layer(), dtype, "TPU v5 lite")
  assert whole.strips == 1
  cut = choice._fitting(layer(), dtype, "TPU v4")
  assert 1 < cut.strips <= 8
  largest = layer(height=160, width=160, block_size=10, value_dim=64)
  assert choice._fitting(largest, dtype, "TPU v5 lite").strips > 1


def test_unknown_implementations_are_named():
  x = jnp.zeros((1, 4, 4, 1, 2))
  tables = [jnp.zeros((9, 1))] * 2
  with pytest.raises(ValueError, match="must be one of auto, xla, "):
    blocked_local_attention(
      x, x, x, *tables, block_size=4, halo_size=1, implementation="cuda"
    )
