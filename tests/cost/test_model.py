"""Costs of models, against XLA, real parameters and counts by hand."""

import dataclasses
import functools
import math

import jax
import jax.extend
import jax.numpy as jnp
import pytest
from flax import linen as nn

import halonet
from halonet.cost import model as model_cost
from halonet.models.registry import get_entry
from halonet.ops import dispatch
from halonet.ops.forms.form import Place

# One or two small blocks of every kind that a registered model has.
SMALL = dict(depths=(1, 2), heads=(2, 2), num_classes=10, base_width=16)
SPECS = {
  "halonet_h4": dict(size=33, df=24, base_width=8),
  "halonet_h1_timm": dict(size=28, base_width=8),
  "halo2botnet50ts_256": dict(
    size=64, operators=("timm_halo", "conv,global"), base_width=8
  ),
  "eca_halonext26ts": dict(size=32, operators=("conv", "conv,timm_halo")),
  "haloregnetz_b": dict(
    size=32, operators=("conv", "timm_halo"), out_widths=(16, 32)
  ),
  "lamhalobotnet50ts_256": dict(size=32, operators=("conv", "lambda")),
  "resnet50_se_silu": dict(size=33, dtype="bfloat16", heads=None),
  "sasa_resnet26_full": dict(size=33, window_size=3),
  "sasa_resnet50_no_content": dict(size=33, operators=("per_pixel", "conv")),
}


def small(name, **changed):
  fields = SMALL | SPECS[name] | changed
  size = fields.pop("size")
  if fields["heads"] is None:
    del fields["heads"]
  return halonet.create_model(name, **fields), size


def lower(model, size):
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  with pytest.MonkeyPatch.context() as patch:
    # XLA counts one turn of a loop: here there is none.
    scan = functools.partial(jax.lax.scan, unroll=True)
    patch.setattr("halonet.ops.forms.direct.lax.scan", scan)
    with dispatch.implementation("direct"):
      return variables, jax.jit(model.apply).lower(variables, images)


@pytest.mark.parametrize("name", SPECS)
def test_parts_sum_to_the_program_and_to_the_parameters(name):
  model, size = small(name)
  counts = model_cost.count(model, size)
  variables, lowered = lower(model, size)
  analysis = lowered.cost_analysis()
  assert counts.total.flops == analysis["flops"] < 2**24
  assert counts.total.transcendentals == analysis["transcendentals"]
  leaves = jax.tree.leaves(variables["params"])
  assert counts.total.parameters == sum(
    math.prod(leaf.shape) for leaf in leaves
  )
  for attribute in ("stage", "kind", "layer"):
    sums = counts.by(attribute).values()
    assert sum(sums, model_cost.Cost()) == counts.total
  assert list(counts.by("stage")) == ["stem", "stage1", "stage2", "head"]


def test_a_block_by_hand():
  # Stage 1: maps of 16×16, 2×2 blocks; 16 channels in 2 heads.
  model = halonet.create_model("halonet_h1", **SMALL | {"depths": (1, 1)})
  counts = model_cost.count(model, 64)
  kinds = {}
  for part in counts.parts:
    if part.stage == "stage1":
      kinds[part.kind] = kinds.get(part.kind, model_cost.Cost()) + part.cost
  pixels, neighbourhoods = 16 * 16, 2 * 2 * 14**2
  # The product, and the scale of the queries' weights.
  assert kinds["projections to q, k, v"].flops == (
    2 * pixels * 3 * 16 * 16 + 16 * 16
  )
  assert kinds["projections to q, k, v"].parameters == 3 * 16 * 16
  assert kinds["projections to q, k, v"].activations == 3 * pixels * 16
  assert kinds["attention logits"].flops == 2 * pixels * 14**2 * 16
  assert kinds["attention values"].flops == 2 * pixels * 14**2 * 16
  assert kinds["relative positions"].parameters == 2 * 21 * 4
  assert kinds["relative positions"].flops == pixels * 2 * (
    2 * 28 * 4 + 2 * 14**2 * 28
  )
  assert kinds["attention values"].attention_bytes == 4 * neighbourhoods * 16
  assert kinds["attention logits"].attention_bytes == 4 * (
    neighbourhoods * 16 + pixels * 2 * 14**2
  )
  assert kinds["relative positions"].attention_bytes == (
    4 * neighbourhoods * 2 * 28
  )
  # Reduce, expand and shortcut; a scale and a bias for each of four norms.
  assert kinds["1×1 convolutions"].flops == 2 * pixels * 3 * 16 * 16
  assert kinds["norms"].parameters == 4 * 2 * 16
  assert (
    counts.total.attention_bytes
    > counts.largest_attention_bytes
    == sum(cost.attention_bytes for cost in kinds.values())
  )


def test_published_operations_of_resnet50():
  model = halonet.create_model("resnet50")
  counts = model_cost.count(model, 224)
  assert counts.total.parameters == 25_557_032
  kinds = counts.by("kind")
  # 4.09 G multiply-adds in convolutions and the classifier, as is well known;
  # that includes taps on the padding, which do nothing.
  products = sum(
    kinds[kind].flops
    for kind in (
      "7×7 convolutions",
      "3×3 convolutions",
      "1×1 convolutions",
      "classifier",
    )
  )
  assert 0.95 * 2 * 4.09e9 < products < 2 * 4.09e9
  assert counts.total.attention_bytes == 0


def test_dtype_size_and_rematerialisation():
  model, _ = small("halonet_h4")
  counts = model_cost.count(model, 32)
  narrow = model_cost.count(small("halonet_h4", dtype="bfloat16")[0], 32)
  # All but the logits of the classifier, which stay float32.
  assert narrow.total.activations == counts.total.activations
  assert counts.total.activation_bytes == 4 * counts.total.activations
  assert narrow.total.activation_bytes == 2 * counts.total.activations + 2 * 10
  for remat in ("block", "stage"):
    again = model_cost.count(small("halonet_h4", remat=remat)[0], 32)
    assert again.parts == counts.parts
  wide = model_cost.count(model, (32, 64))
  assert (
    wide.image_size == (32, 64)
    and wide.total.parameters == counts.total.parameters
  )
  assert wide.by("kind")["classifier"] == counts.by("kind")["classifier"]


class Host(nn.Module):
  """A network from elsewhere: no spec, no batch norms, other names."""

  @nn.compact
  def __call__(self, images, train):
    x = nn.Conv(8, (4, 4), strides=4, name="patches")(images)
    x = nn.MultiHeadDotProductAttention(2, name="mix")(nn.LayerNorm()(x))
    return nn.Dense(3, name="angle")(jnp.sort(x).mean(axis=(1, 2)))


def test_slide_attention_counts_alike_everywhere(monkeypatch):
  """What a TPU's form adds, zeros between heads, is no work of the model."""
  model = halonet.create_model(
    "slide_swin_tiny",
    depths=(1,),
    widths=(16,),
    heads=(2,),
    operators=("slide",),
  )
  expected = model_cost.count(model, 16).total
  place = dataclasses.replace(Place.current(), platform="tpu")
  monkeypatch.setattr(Place, "current", lambda: place)
  assert model_cost.count(model, 16).total == expected


def test_a_model_from_outside_is_counted():
  counts = model_cost.count(Host(), 32)
  assert counts.by("kind")["4×4 convolutions"].flops > 2 * 8 * 8 * 8 * 48
  assert counts.by("kind")["norms"].parameters == 16
  projections = counts.by("kind")["projections to q, k, v"]
  assert projections.parameters == 3 * (8 + 1) * 8
  assert {"patches", "LayerNorm_0", "mix", "angle"} < set(counts.by("stage"))
  assert counts.total.flops == model_cost.forward_flops(Host(), 32) > 0


def test_an_unknown_cost_ends_nothing():
  class Unheard(nn.Module):
    def __call__(self, images, train):
      new = jax.extend.core.Primitive("new")
      new.def_abstract_eval(lambda x: x)
      return new.bind(images) + 1

  class Broken(nn.Module):
    def __call__(self, images, train):
      raise TypeError

  counts = model_cost.count(Unheard(), 4)
  assert counts.unknown == ("stem: new",) and counts.total.flops == 48
  assert model_cost.forward_flops(Unheard(), 4) is None
  assert model_cost.forward_flops(Broken(), 4) is None


def test_nothing_is_allocated():
  model, size = small("halonet_h4")
  before = len(jax.live_arrays())
  model_cost.count(model, 4 * size)
  assert len(jax.live_arrays()) == before


# Multiply-adds in 10⁹ that timm publishes with its weights; how it counts, it
# does not say.
PUBLISHED = {
  "halonet50ts": 5.30,
  "halo2botnet50ts_256": 5.02,
  "sehalonet33ts": 3.55,
  "eca_halonext26ts": 2.44,
  "halonet26t": 3.19,
  "haloregnetz_b": 1.97,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", halonet.list_models())
def test_every_model_is_counted(name):
  model, size = halonet.create_model(name), get_entry(name).image_size
  counts = model_cost.count(model, size)
  variables, lowered = lower(model, size)
  # XLA sums in float32.
  assert counts.total.flops == pytest.approx(
    lowered.cost_analysis()["flops"], 1e-5
  )
  leaves = jax.tree.leaves(variables["params"])
  assert counts.total.parameters == sum(
    math.prod(leaf.shape) for leaf in leaves
  )
  if name in PUBLISHED:
    assert counts.total.flops / 2e9 == pytest.approx(PUBLISHED[name], rel=0.03)
