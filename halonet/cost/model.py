"""Counts what a model costs, layer by layer.

The forward pass of one image is traced from shapes: no array is made, and no
device is needed. Every operation, parameter and activation belongs to one stage
of the network and one kind of layer, so the parts sum to the whole.

Any Flax model will do. What a layer is follows from the class and the name of
its module, and from the scopes that attentions give to their parts (`logits`,
`softmax`, `values`, `relative`, `neighbourhoods`). A class that is best summed
up as a whole may say so by an attribute, `cost_kind = "channel attention"`.
"""

import collections
import dataclasses
import functools
import math
import operator
import re

import jax
import jax.numpy as jnp
from flax import linen as nn

from halonet.cost import counted
from halonet.ops import dispatch


@dataclasses.dataclass(frozen=True)
class Cost:
  """What something costs; costs add.

  Attributes:
    parameters: trained numbers, without the running statistics of norms.
    flops: operations of one image's forward pass; a multiplication and an
      addition are two. `halonet.cost.counted` says what counts.
    transcendentals: exponentials and the like, which are not among `flops`.
    activations: outputs of layers for one image: convolutions, attentions and
      their projections, norms, the classifier. A compiler fuses activation
      functions and sums into them.
    activation_bytes: the same in bytes.
    attention_bytes: attention memory, which an attention holds for one image
      between its steps: the gathered neighbourhoods of keys (with the one-hot
      vectors of their places) and of values, and the logits; per pixel, the
      padded maps and the weights of a row of the windows. A fused kernel holds
      less.
  """

  parameters: int = 0
  flops: int = 0
  transcendentals: int = 0
  activations: int = 0
  activation_bytes: int = 0
  attention_bytes: int = 0

  def __add__(self, other: "Cost") -> "Cost":
    return Cost(*map(operator.add, vars(self).values(), vars(other).values()))


@dataclasses.dataclass(frozen=True)
class Part:
  """One kind of work in one layer.

  Attributes:
    stage: "stem", "stage1", …, "head"; without such names in a model, or
      beside a backbone that has them, those of its modules.
    layer: path of its module, such as `stage1_block1/attention`; "" for what
      the model does between its modules.
    kind: of layer, such as "3×3 convolutions" or "attention logits".
    cost: for one image.
  """

  stage: str
  layer: str
  kind: str
  cost: Cost


@dataclasses.dataclass(frozen=True)
class Counts:
  """A model's costs.

  Attributes:
    image_size: height and width of the image in pixels.
    parts: they sum to `total`.
    unknown: operations whose cost XLA cannot tell, as "layer: primitive". They
      are in no part.
  """

  image_size: tuple[int, int]
  parts: tuple[Part, ...]
  unknown: tuple[str, ...] = ()

  @functools.cached_property
  def total(self) -> Cost:
    """The sum; its `attention_bytes` are those that training holds."""
    return sum((part.cost for part in self.parts), Cost())

  @property
  def largest_attention_bytes(self) -> int:
    """The most of any layer: inference holds one layer at a time."""
    layers = self.by("layer").values()
    return max((each.attention_bytes for each in layers), default=0)

  def by(self, attribute: str) -> dict[str, Cost]:
    """Returns sums over "stage", "kind" or "layer", in the model's order."""
    sums = collections.defaultdict(Cost)
    for part in self.parts:
      sums[getattr(part, attribute)] += part.cost
    return dict(sums)


def forward_flops(
  model: nn.Module, image_size: int | tuple[int, int]
) -> int | None:
  """Counts FLOPs of one image's forward pass, in evaluation.

  Args:
    model: any Flax module with `__call__(images, train)`.
    image_size: side of a square image in pixels, or height and width.

  Returns:
    None if they are unknown: a figure for information never ends a run.
  """
  try:
    operations = _operations(model, *_shapes(model, _pair(image_size)))
  except Exception:
    return None
  if not all(operation.known for operation in operations):
    return None
  return sum(operation.flops for operation in operations)


def count(model: nn.Module, image_size: int | tuple[int, int]) -> Counts:
  """Counts what a model costs.

  Arguments are those of `forward_flops`. Costs are of the forward pass of one
  image in evaluation, in the model's dtype.
  """
  size = _pair(image_size)
  variables, images = _shapes(model, size)
  layers = _Layers(model, variables, images)
  operations = [
    (operation, *layers.place(operation.scopes))
    for operation in _operations(model, variables, images)
  ]
  # An attention without products of matrices for logits goes pixel by pixel.
  logits = {
    layers.attention(path): operation
    for operation, path, parts in operations
    if operation.contracted and "logits" in parts
  }
  sums = collections.defaultdict(Cost)  # Of (stage, layer, kind).
  stage, unknown = "stem", {}
  for operation, path, parts in operations:
    # What the model does between its modules comes before or after its stages.
    stage = layers.stage(path) or ("stem" if stage == "stem" else "head")
    layer = layers.layer(path)
    if not operation.known:
      unknown[f"{layer or stage}: {operation.primitive}"] = None
    for kind, cost in _split(operation, path, parts, layers, logits):
      sums[stage, layer, kind] += cost
  for path, array in layers.parameters.items():
    relative = path[-1].startswith("relative")
    kind = "relative positions" if relative else layers.kind(path[:-1])
    cost = Cost(parameters=math.prod(array.shape))
    sums[layers.stage(path), layers.layer(path[:-1]), kind] += cost
  for path, array in layers.outputs:
    attends = layers.attention(path) == path
    kind = "attention values" if attends else layers.kind(path)
    sums[layers.stage(path), layers.layer(path), kind] += Cost(
      activations=array.size, activation_bytes=counted.num_bytes(array)
    )
  return Counts(
    size,
    tuple(Part(*place, cost) for place, cost in sums.items() if cost != Cost()),
    tuple(unknown),
  )


def _pair(size):
  return size if isinstance(size, tuple) else (size, size)


@dispatch.implementation("direct")
def _shapes(model, size):
  """Returns the shapes of a model's variables and of one image."""
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.eval_shape(lambda *x: model.init(*x, False), key, images), images


# The form of each attention with the fewest operations: what others do beyond
# the formula is no work of the model.
@dispatch.implementation("direct")
def _operations(model, variables, images):

  def forward(variables, images):  # A new function, which nobody has traced.
    return model.apply(variables, images, False)

  return counted.operations(forward, variables, images)


class _Layers:
  """The modules of a model, by their paths, and what can be told from them.

  Attributes:
    parameters: shapes by path, the parameter's name last.
    outputs: (path, shape) of what layers put out: modules that have parameters
      of their own, and attentions.
  """

  @dispatch.implementation("direct")
  def __init__(self, model, variables, images):
    self._classes = {}
    self.parameters = _leaves(variables.get("params", {}))
    self._owners = {path[:-1] for path in self.parameters} - {()}

    def note(module, method):
      self._classes[module.path] = type(module)
      return method == "__call__" and self._is_layer(module.path)

    _, captured = jax.eval_shape(
      lambda *x: model.apply(
        *x, False, capture_intermediates=note, mutable=["intermediates"]
      ),
      variables,
      images,
    )
    self.outputs = [
      (path[: path.index("__call__")], array)
      for path, array in _leaves(captured.get("intermediates", {})).items()
    ]
    self._staged = any(_STAGE.match(path[0]) for path in self.parameters)
    # Modules that hold the stages, such as a detector's backbone.
    self._bodies = {
      path[0]
      for path in self.parameters
      if len(path) > 1 and _STAGE.match(path[1])
    }

  def place(self, scopes):
    """Splits scopes into the path of a module and the parts within it."""
    path, parts = (), []
    for scope in scopes:
      # Methods beside `__call__` are "module.method".
      module, _, method = scope.partition(".")
      if (*path, module) in self._classes:
        path = (*path, module)
      elif not (method and path[-1:] == (module,)):
        parts.append(scope)
    return path, parts

  def stage(self, path):
    """Returns the stage of a module; None for the model itself."""
    if not path:
      return None
    within = path[1:2] if path[0] in self._bodies else ()
    found = _STAGE.match((within or path)[0])
    return found[0] if found else "head" if self._staged else path[0]

  def layer(self, path):
    """Returns the path of a layer of the model or of one of its blocks."""
    top = 1 + (path[:1] != () and path[0] in self._bodies)
    return "/".join(path[: top if self._is_layer(path[:top]) else top + 1])

  def attention(self, path):
    """Returns the path of the attention that a module belongs to, or None."""
    prefixes = (path[:end] for end in range(1, len(path) + 1))
    return next(filter(self._attends, prefixes), None)

  def head_dim(self, path):
    """Returns the width of a head of an attention's queries."""
    kernel = self.parameters[*path, "query", "kernel"]  # [c, heads, head_dim]
    return kernel.shape[-1]

  def kind(self, path, parts=(), primitive=""):
    """Returns what kind of layer an operation, or a module, belongs to."""
    for end in range(1, len(path) + 1):
      cls = self._classes.get(path[:end], object)
      if hasattr(cls, "cost_kind"):
        return cls.cost_kind
      if "Norm" in cls.__name__:
        return "norms"
    for name in (*reversed(parts), *path[-1:]):
      if name in _KINDS:
        return _KINDS[name]
    kernel = self.parameters.get((*path, "kernel"))
    if kernel is not None:
      convolves = "Conv" in self._classes.get(path, object).__name__
      sides = kernel.shape[:-2] if convolves else ()
      return f"{'×'.join(map(str, sides or (1, 1)))} convolutions"
    if self.attention(path):
      return "softmax, masks, scale"
    if primitive in ("reduce_window_max", "reduce_sum", "div"):
      return "pooling"
    return "activation functions, sums"

  def _attends(self, path):
    cls = self._classes.get(path, object)
    return "Attention" in cls.__name__ and not hasattr(cls, "cost_kind")

  def _is_layer(self, path):
    return path in self._owners or self._attends(path)


_STAGE = re.compile(r"stem|stage\d+")
# Kinds by the names of modules and of the scopes in an attention.
_KINDS = {
  "projections": "projections to q, k, v",
  "query": "projections to q, k, v",
  "key": "projections to q, k, v",
  "value": "projections to q, k, v",
  "logits": "attention logits",
  "values": "attention values",
  "relative": "relative positions",
  "classifier": "classifier",
}


def _leaves(tree):
  """Returns the leaves of nested dicts by their paths."""
  return {
    tuple(str(getattr(key, "key", getattr(key, "idx", key))) for key in path): x
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def _split(operation, path, parts, layers, logits):
  """Splits an operation by kind of layer."""
  kind = layers.kind(path, parts, operation.primitive)
  flops = operation.flops
  cost = Cost(flops=flops, transcendentals=operation.transcendentals)
  attention = layers.attention(path)
  held = 0
  if attention and attention not in logits:
    # The padded maps, and a row of the weights.
    if operation.primitive == "exp" or "neighbourhoods" in parts:
      held = counted.num_bytes(operation.result)
  elif attention and kind in ("attention logits", "attention values"):
    if not operation.contracted:  # The weights, in another dtype.
      kind = "softmax, masks, scale"
    elif kind == "attention values":
      left, right = operation.operands
      weights = logits[attention].result.size
      held = counted.num_bytes(right if left.size == weights else left)
    else:
      # Terms of the sum beyond a head's width tell where a key lies. A
      # neighbourhood has as many keys as there are queries, or more.
      keys = counted.num_bytes(max(operation.operands, key=lambda x: x.size))
      head_dim = layers.head_dim(attention)
      content = flops * head_dim // operation.contracted
      places = keys - keys * head_dim // operation.contracted
      logit_bytes = counted.num_bytes(operation.result)
      return [
        (
          kind,
          Cost(flops=content, attention_bytes=keys - places + logit_bytes),
        ),
        (
          "relative positions",
          Cost(flops=flops - content, attention_bytes=places),
        ),
      ]
  return [(kind, dataclasses.replace(cost, attention_bytes=held))]
