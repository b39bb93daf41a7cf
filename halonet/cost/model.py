"""What a model costs, layer by layer, from its description alone.

The forward pass of one image is traced from shapes: no array is made, and no
device is needed. Every operation, parameter and activation is put down to one
stage of the network and one kind of layer, so that the parts sum to the whole.
"""

import collections
import dataclasses
import fractions
import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from halonet.cost import counted
from halonet.models.layers import GlobalAttention, HaloAttention, Projection
from halonet.models.network import Network
from halonet.models.normalization import BatchNorm
from halonet.models.per_pixel import (
  AttentionStem,
  MixedValues,
  PerPixelAttention,
)
from halonet.models.spec import NetworkSpec


@dataclasses.dataclass(frozen=True)
class Cost:
  """What something costs; costs add.

  Attributes:
    parameters: trained numbers; the running statistics of batch norms are not.
    flops: operations of one image's forward pass; a multiplication and an
      addition are two. `halonet.cost.counted` says what counts.
    transcendentals: exponentials and the like, which are not among `flops`.
    activations: numbers that the layers put out for one image: convolutions,
      1×1 ones among them, attentions and their projections, norms, the
      classifier. Activation functions and sums, which a compiler fuses into
      them, put out nothing more.
    activation_bytes: the same in bytes.
    attention_bytes: attention memory, what an attention holds of one image
      between its steps: the gathered neighbourhoods of keys (with the one-hot
      vectors of their places) and of values, and the logits; per pixel, the
      maps with their border and the weights of a row of the windows. A fused
      kernel holds less.
  """

  parameters: int = 0
  flops: int = 0
  transcendentals: int = 0
  activations: int = 0
  activation_bytes: int = 0
  attention_bytes: int = 0

  def __add__(self, other: "Cost") -> "Cost":
    return Cost(
      **{
        field.name: getattr(self, field.name) + getattr(other, field.name)
        for field in dataclasses.fields(Cost)
      }
    )


@dataclasses.dataclass(frozen=True)
class Part:
  """One kind of work in one layer.

  Attributes:
    stage: "stem", "stage1", …, "head".
    layer: path of its module, such as `stage1_block1/attention`; "" for what
      the network does between its layers.
    kind: of layer, such as "3×3 convolutions" or "attention logits".
    cost: of one image.
  """

  stage: str
  layer: str
  kind: str
  cost: Cost


@dataclasses.dataclass(frozen=True)
class Counts:
  """A model's costs.

  Attributes:
    image_size: height and width of the image, in pixels.
    parts: they sum to `total`.
  """

  image_size: tuple[int, int]
  parts: tuple[Part, ...]

  @functools.cached_property
  def total(self) -> Cost:
    return sum((part.cost for part in self.parts), Cost())

  @property
  def parameters(self) -> int:
    return self.total.parameters

  @property
  def flops(self) -> int:
    """Of one image's forward pass."""
    return self.total.flops

  @property
  def activations(self) -> int:
    """Numbers that the layers put out for one image."""
    return self.total.activations

  @property
  def activation_bytes(self) -> int:
    return self.total.activation_bytes

  @property
  def attention_bytes(self) -> int:
    """Of all layers together, as training holds them for the backward pass."""
    return self.total.attention_bytes

  @property
  def largest_attention_bytes(self) -> int:
    """Of the layer with the most: inference holds one layer at a time."""
    return max(each.attention_bytes for each in self.by("layer").values())

  def by(self, attribute: str) -> dict[str, Cost]:
    """Sums over "stage", "kind" or "layer", in the network's order."""
    sums = collections.defaultdict(Cost)
    for part in self.parts:
      sums[getattr(part, attribute)] += part.cost
    return dict(sums)


def count(spec: NetworkSpec, image_size: int | tuple[int, int]) -> Counts:
  """Counts what a model costs.

  Args:
    spec: describes it; `halonet.create_model(...).spec` is one.
    image_size: side of a square image in pixels, or height and width.

  Returns:
    Costs of the forward pass of one image, as in evaluation, in the
    computation's dtype, and the parameters.
  """
  height, width = (
    image_size if isinstance(image_size, tuple) else (image_size, image_size)
  )
  # What is computed again in training is no other forward pass, and forms of
  # the attention that do more than the formula asks for are no other model.
  plain = "direct" if "p" in "".join(spec.operators) else "xla"
  model = Network(
    dataclasses.replace(spec, remat="none", attention_implementation=plain)
  )
  images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  variables = jax.eval_shape(model.init, key, images)
  _, captured = jax.eval_shape(
    functools.partial(
      model.apply,
      capture_intermediates=lambda module, _: isinstance(module, _LAYERS),
      mutable=["intermediates"],
    ),
    variables,
    images,
  )
  parameters = _leaves(variables["params"])
  kernels = {
    path[:-1]: array.shape
    for path, array in parameters.items()
    if path[-1] == "kernel"
  }
  sums = collections.defaultdict(Cost)  # Of (stage, layer, kind).
  stage = "stem"
  for operation in counted.operations(model.apply, variables, images):
    # Before the modules' names there are the network's own.
    path = tuple(
      scope
      for scope in operation.scopes
      if scope.partition(".")[0] != Network.__name__
    )
    # What the network does itself follows on what it has done before.
    stage = _stage(path) or ("stem" if stage == "stem" else "head")
    for kind, cost in _kinds(operation, path, kernels, spec):
      sums[stage, _layer(path), kind] += cost
  for path, array in parameters.items():
    relative = path[-1].startswith("relative")
    kind = "relative positions" if relative else _kind(path, "", kernels)
    cost = Cost(parameters=math.prod(array.shape))
    sums[_stage(path), _layer(path), kind] += cost
  for path, array in _leaves(captured["intermediates"]).items():
    path = path[: path.index("__call__")]
    attends = path[-1] == "attention"
    kind = "attention values" if attends else _kind(path, "", kernels)
    output = counted.Array(array.shape, np.dtype(array.dtype))
    sums[_stage(path), _layer(path), kind] += Cost(
      activations=output.elements, activation_bytes=output.bytes
    )
  return Counts(
    (height, width),
    tuple(Part(*place, cost) for place, cost in sums.items() if cost != Cost()),
  )


# Modules whose outputs are activations: those with parameters of their own.
_LAYERS = (
  nn.Conv,
  nn.Dense,
  Projection,
  BatchNorm,
  HaloAttention,
  GlobalAttention,
  PerPixelAttention,
  AttentionStem,
  MixedValues,
)

# By the names that `halonet.models` and `halonet.ops` give.
_KINDS = {
  "se": "channel attention",
  "eca": "channel attention",
  "query": "projections to q, k, v",
  "key": "projections to q, k, v",
  "value": "projections to q, k, v",
  "logits": "attention logits",
  "values": "attention values",
  "relative": "relative positions",
  "attention": "softmax, masks, scale",
  "classifier": "classifier",
}


def _leaves(tree):
  """The leaves of nested dicts by their paths."""
  return {
    tuple(str(getattr(key, "key", getattr(key, "idx", key))) for key in path): x
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def _stage(path):
  """The stage of a module, by its name; None for the network itself."""
  if not path:
    return None
  stage = re.match(r"stem|stage\d+", path[0])
  return stage[0] if stage else "head"


def _layer(path):
  """The path of a layer of the network or of one of its blocks."""
  return "/".join(path[: 2 if path and "_block" in path[0] else 1])


def _kind(path, primitive, kernels):
  for name in path:
    if name.endswith("_norm"):
      return "norms"
  # An attention's parts say more than it does, the classifier's name all.
  for name in ("se", "eca", *reversed(path)):
    if name in path and name in _KINDS:
      return _KINDS[name]
  for end in range(len(path), 0, -1):
    if path[:end] in kernels:
      size = kernels[path[:end]][:-2] or (1, 1)
      return f"{size[0]}×{size[1]} convolutions"
  if primitive in ("reduce_window_max", "reduce_sum", "div"):
    return "pooling"
  return "activation functions, sums"


def _head_dims(name, spec):
  """Channels of a head's queries and values; None: attention per pixel."""
  if name == "stem":
    return (spec.base_width // AttentionStem.HEADS,) * 2
  (block,) = (
    block for block in itertools.chain(*spec.stages) if block.name == name
  )
  if block.operator == "p":
    return None
  return block.qk_width // block.heads, block.value_width // block.heads


def _kinds(operation, path, kernels, spec):
  """Splits an operation by kind of layer."""
  kind = _kind(path, operation.primitive, kernels)
  cost = Cost(flops=operation.flops, transcendentals=operation.transcendentals)
  if "attention" in path and _head_dims(path[0], spec) is None:
    # The maps with their border, and a row of the weights.
    if operation.primitive == "exp" or "neighbourhoods" in path:
      cost = dataclasses.replace(cost, attention_bytes=operation.result.bytes)
    return [(kind, cost)]
  if kind not in ("attention logits", "attention values"):
    return [(kind, cost)]
  if operation.primitive != "dot_general":  # Of the weights' dtype.
    return [(_KINDS["attention"], cost)]
  head_dim, value_dim = _head_dims(path[0], spec)
  result = operation.result
  if kind == "attention values":
    weights = result.elements // value_dim * operation.contracted
    values = operation.operands[operation.operands[0].elements == weights]
    return [(kind, dataclasses.replace(cost, attention_bytes=values.bytes))]
  # A neighbourhood has as many keys as there are queries, or more.
  keys = max(operation.operands, key=lambda operand: operand.elements)
  content = fractions.Fraction(head_dim, operation.contracted)
  return [
    (
      kind,
      Cost(
        flops=int(cost.flops * content),
        attention_bytes=int(keys.bytes * content) + result.bytes,
      ),
    ),
    (
      "relative positions",
      Cost(
        flops=int(cost.flops * (1 - content)),
        attention_bytes=int(keys.bytes * (1 - content)),
      ),
    ),
  ]
