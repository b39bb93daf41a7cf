"""Which form serves a layer: by chip, dtype, shape and devices of a mesh."""

import importlib.util
import logging

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from halonet.chips import CHIPS
from halonet.ops import dispatch
from halonet.ops.forms.form import Place
from halonet.ops.forms.tpu.pallas_tpu import fit
from halonet.ops.neighbourhood import Neighbourhood

PER_PIXEL = dict(reach=(3, 3))


def mesh(kind, devices=4, rows=1):
  return AbstractMesh(
    (devices, rows),
    ("data", "rows"),
    axis_types=(AxisType.Auto,) * 2,
    abstract_device=AbstractDevice(
      device_kind=kind,
      num_cores=1,
      platform="gpu" if kind.startswith("NVIDIA") else kind[:3].lower(),
    ),
  )


def layer(**sizes):
  return Neighbourhood(
    **dict(height=64, width=64, block_size=8, halo_size=3) | sizes
  )


def maps(batch=8, dtype="bfloat16", head_dim=16, value_dim=16):
  return [
    jax.ShapeDtypeStruct((batch, 64, 64, 4, dim), dtype)
    for dim in (head_dim, head_dim, value_dim)
  ]


def chosen(kind, name, *, devices=4, rows=1, **options):
  """The name of the form that serves, and what is logged once."""
  dispatch.log_once.cache_clear()
  names = {"batch", "dtype", "head_dim", "value_dim"} & set(options)
  arrays = maps(**{key: options.pop(key) for key in names})
  with jax.sharding.use_abstract_mesh(mesh(kind, devices, rows)):
    place = Place.current()
  return dispatch.choose(name, *arrays, layer(**options), place).name


@pytest.mark.parametrize(
  "kind", [chip.kinds[0] for chip in CHIPS if chip.vector_memory]
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
    (dict(kind="TPU v2"), "TPU v2 is not one of TPU v3, TPU v4, TPU v5e"),
    (dict(dtype="float32"), "it takes bfloat16, not float32"),
    (dict(batch=6), "a batch of 6 does not split over 4 devices"),
    (dict(rows=2), "the mesh splits 'rows', and kernels can split only 'data'"),
    (dict(head_dim=4), "heads are 4 and 16 wide, not multiples of 8"),
    (dict(height=800, width=800, block_size=800), "not even a block fits"),
  ],
)
def test_what_kernels_cannot_serve_is_said(arguments, reason, caplog):
  arguments = dict(kind="TPU v5 lite") | arguments
  assert chosen(name="auto", **arguments) == "xla_packed"
  (record,) = caplog.records
  assert record.levelname == "WARNING" and reason in record.message
  with pytest.raises(dispatch.Unserved, match="cannot serve this") as error:
    chosen(name="pallas_tpu", **arguments)
  assert reason in str(error.value)


def test_several_tpus_without_a_mesh_are_told_what_to_do(caplog):
  empty = jax.sharding.get_abstract_mesh()
  for devices in (1, 4):
    dispatch.log_once.cache_clear()
    place = Place(empty, "tpu", "TPU v5 lite", devices)
    for _ in range(2):  # A message is logged once.
      form = dispatch.choose("auto", *maps(), layer(), place)
    assert form.name == ("pallas_tpu" if devices == 1 else "xla_packed")
  # Another test may have asked for messages of less weight.
  warnings = [each for each in caplog.records if each.levelname == "WARNING"]
  (record,) = warnings
  assert "there are 4 devices, and no mesh in context" in record.message
  assert "under jax.set_mesh(mesh)" in record.message
  # They may still be asked for.
  form = dispatch.choose("pallas_tpu", *maps(), layer(), place)
  assert form.name == "pallas_tpu"


@pytest.mark.parametrize(
  "kind, devices, name",
  [
    ("cpu", 1, "xla_chunked"),
    ("cpu", 4, "xla"),
    ("NVIDIA H100", 1, "xla"),
  ],
)
@pytest.mark.parametrize("sizes", [{}, PER_PIXEL])
def test_auto_elsewhere(kind, devices, name, sizes):
  assert chosen(kind, "auto", devices=devices, **sizes) == name


def test_kernels_are_interpreted_elsewhere(caplog):
  with caplog.at_level(logging.INFO):
    assert chosen("NVIDIA H100", "pallas_gpu") == "pallas_gpu"
    assert chosen("cpu", "pallas_gpu", dtype="float32") == "pallas_gpu"
  assert [record.message for record in caplog.records] == [
    "attention: pallas_gpu",
    "attention: pallas_gpu, interpreted without a GPU, which is slow",
  ]


@pytest.mark.parametrize(
  "name, arguments, reason",
  [
    ("pallas_gpu", dict(batch=6), "a batch of 6 does not split over 4 devices"),
    (
      "pallas_gpu",
      dict(dtype="float16"),
      "it takes float32 or bfloat16, not float16",
    ),
    (
      "pallas_gpu",
      dict(value_dim=512),
      "a value takes 512 numbers, more than 256",
    ),
    (
      "pallas_gpu",
      dict(head_dim=200, halo_size=12),
      "a query with its relative logits takes 264 numbers, more than 256",
    ),
    ("direct", {}, "the queries of a block share their keys"),
    ("direct", dict(stride=2, **PER_PIXEL), "the queries are 2 pixels apart"),
  ],
)
def test_other_forms_say_what_they_cannot_serve(name, arguments, reason):
  with pytest.raises(dispatch.Unserved, match=reason):
    chosen("NVIDIA H100", name, **arguments)


def test_a_jax_without_triton_is_said(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(dispatch.Unserved, match="has no Triton dialect"):
    chosen("NVIDIA H100", "pallas_gpu")


def test_large_maps_are_cut_into_parts_that_fit():
  query, _, value = maps()
  empty = jax.sharding.get_abstract_mesh()

  def parts(kind, value, **options):
    place = Place(empty, "tpu", kind, 1)
    tiling = fit(query, value, layer(**options), place)
    return tiling.strips, tiling.panels, tiling.heads

  heads = query.shape[3]
  assert parts("TPU v5 lite", value) == (1, 1, heads)
  strips, *rest = parts("TPU v4", value)
  assert 1 < strips <= 8 and rest == [1, heads]
  large = dict(height=160, width=160, block_size=10)
  wide = maps(value_dim=64)[2]
  strips, *rest = parts("TPU v5 lite", wide, **large)
  assert strips > 1 and rest == [1, heads]
  strips, panels, count = parts("TPU v4", wide, **large)
  assert strips == 16 and panels > 1 and count == heads
  # Float32 needs more memory, and one large block more than its share.
  *_, count = parts("TPU v3", wide, height=32, width=32, block_size=32)
  assert count < heads
  # H7's first stage: two strips would pad 15 rows of blocks to 16.
  rows = dict(height=150, width=150, block_size=10)
  assert parts("TPU v5 lite", wide, **rows)[0] == 3
  # A map that blocks do not fill is padded either way.
  assert parts("TPU v5 lite", wide, **rows | {"height": 149})[0] == 2


def test_a_form_is_forced_on_what_is_traced_inside():
  with dispatch.implementation("direct"):
    assert chosen("TPU v4", "auto", **PER_PIXEL) == "direct"
    assert chosen("TPU v4", "pallas_tpu") == "xla"  # "direct" cannot serve it.
    with dispatch.implementation("auto"):
      assert chosen("TPU v4", "xla") == "pallas_tpu"
  assert chosen("TPU v4", "xla", **PER_PIXEL) == "xla"
  with pytest.raises(ValueError, match="is 'cuda'; it must be one of auto, "):
    dispatch.implementation("cuda").__enter__()
