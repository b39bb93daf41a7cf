"""What hosts of stages share: calls, features, and weights of other models."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from halonet.fields import Field
from halonet.layers.base import check_map
from halonet.layers.classifier import classifier
from halonet.layers.normalization import STATISTICS
from halonet.models import parts
from halonet.models.parts import PartsSpec
from halonet.ops.forms.form import KERNEL_RESULTS

# What rematerialisation keeps inside of a block: what costs much time.
KEPT = jax.checkpoint_policies.save_only_these_names(STATISTICS, KERNEL_RESULTS)


class Backbone(nn.Module):
  """A stem, stages of blocks, pooling and a linear classifier; base class.

  With `num_classes=0` it ends with the pooling of the last stage's output, as a
  detector's or another network's body: there is no classifier, nor a layer
  before it. A subclass has a compact method `_forward(images, train)`, which
  returns the outputs of all stages by name, and the logits.

  Attributes:
    spec: what it is made of.
    spec_class: class of `spec`.
    last_modules: modules after the last stage, which features do not need.
  """

  spec: PartsSpec
  spec_class: ClassVar[type[PartsSpec]]
  last_modules: ClassVar[tuple[str, ...]] = (
    "final",
    "final_norm",
    "classifier",
  )

  @classmethod
  def fields(cls, chosen: Mapping[str, Any]) -> dict[str, Field]:
    """Returns the fields of a model; see `parts.spec_fields`."""
    return parts.spec_fields(cls.spec_class, chosen)

  @classmethod
  def make(cls, **values: Any) -> "Backbone":
    """Makes a model of checked values for all `fields`."""
    return cls(parts.make_spec(cls.spec_class, values))

  @classmethod
  def owners(cls, name: str) -> list[str]:
    """Names the parts that would have a field."""
    return parts.owners(cls.spec_class, name)

  def __call__(
    self, images: Array, train: bool = False
  ) -> Float[Array, "b num_classes"]:
    """Classifies images, or pools their features if there are no classes.

    Args:
      images: `[batch, height, width, channels]` of any size, normalised.
      train: uses the statistics of the batch in batch norms, updates the
        collection `batch_stats` if it is mutable, and drops paths and features,
        for which it needs `rngs={"dropout": key}` where the model has any.

    Returns:
      float32 logits, `[batch, num_classes]`; with `num_classes=0` the pooled
      features of the last stage, as timm returns them.

    Raises:
      ValueError: if the images are of another shape, or of whole numbers.
    """
    return self._forward(images, train)[1]

  def features(
    self, images: Array, train: bool = False
  ) -> dict[str, Float[Array, "b fh fw fc"]]:
    """Returns the output of every stage, by the names in
    `spec.feature_info`.

    A map has the input's height and width over the stage's stride, rounded up.
    """
    return self._forward(images, train)[0]

  @property
  def window(self) -> int | None:
    """Side in pixels of what a query sees in the widest local attention."""
    windows = [self.spec.operator(b).window(b) for b in self.spec.blocks]
    return max((each for each in windows if each is not None), default=None)

  @nn.nowrap
  def adapt(
    self, path: str, array: np.ndarray, shape: tuple[int, ...], source: Any
  ) -> np.ndarray | None:
    """Fits a variable of another model to this one.

    Args:
      path: such as `params/stage1_block1/attention/relative_height`.
      array: its value in the other model.
      shape: shape that it must have here.
      source: the other model.

    Returns:
      An array of that shape, with resized relative tables; `array` itself
      where nothing has to change; None if there is no way.
    """
    if not isinstance(source, type(self)):
      return array if array.shape == shape else None
    _, block, *rest = path.split("/")
    mine, theirs = (
      {b.name: model.spec.operator(b) for b in model.spec.blocks}.get(block)
      for model in (self, source)
    )
    if mine is None or type(mine) is not type(theirs) or rest[0] != mine.name:
      return array if array.shape == shape else None
    return mine.adapt("/".join(rest[1:]), array, shape, theirs)


def check_images(images: jax.Array, dtype: str) -> None:
  """Raises ValueError unless a model of that dtype can take the images."""
  check_map(images, "images")
  if dtype == "float64" and not jax.config.jax_enable_x64:
    raise ValueError("dtype is 'float64', which asks for jax_enable_x64")


def classify(
  spec: PartsSpec,
  x: Float[Array, "b c"],
  train: bool,
  init: nn.initializers.Initializer,
) -> Float[Array, "b num_classes"]:
  """Applies dropout and the classifier, if any, in a host's compact method.

  Args:
    spec: the host's.
    x: pooled features, float32 or wider.
    train: whether features are dropped.
    init: draws the classifier's kernel, unless the spec says that it is zero.
  """
  if not spec.num_classes:
    return x
  x = nn.Dropout(spec.dropout, deterministic=not train)(x)
  if spec.zero_init_classifier:
    init = nn.initializers.zeros
  return classifier(spec.num_classes, init)(x)


def pool(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
  """Averages a map over its pixels, in float32 or wider."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean(axis=(1, 2))
