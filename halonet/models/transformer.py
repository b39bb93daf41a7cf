"""Transformers of stages, whose spatial operators mix freely.

Swin, PVT and PVTv2 are rows of fields; see `halonet.models.transformer_spec`.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from halonet.layers import layouts, mlp
from halonet.layers.layouts import Entries, Shapes
from halonet.layers.mlp import Mlp, gelu, linear
from halonet.layers.projections import LINEAR_INIT
from halonet.models.backbone import KEPT, Backbone, check_images, classify, pool
from halonet.models.parts import BlockSpec
from halonet.models.transformer_spec import TransformerSpec


class Transformer(Backbone):
  """A patch embedding, stages of pre-norm blocks, a norm and a classifier.

  The map is averaged for the classifier, unless there is a class token. The
  outputs of stages are those of their last blocks, or of the norm after them
  where all stages have one.

  Attributes:
    spec: what it is made of.
  """

  spec: TransformerSpec
  spec_class: ClassVar[type[TransformerSpec]] = TransformerSpec

  @nn.compact
  def _forward(self, images, train):
    spec = self.spec
    check_images(images, spec.dtype)
    dtype = jnp.dtype(spec.dtype)
    norm = functools.partial(
      nn.LayerNorm, epsilon=1e-5, use_fast_variance=False, dtype=dtype
    )
    block_norm = functools.partial(norm, epsilon=spec.norm_epsilon)
    block_class = EncoderBlock
    if spec.remat == "block":
      block_class = nn.remat(EncoderBlock, policy=KEPT)

    def run_stage(module, x, stage):
      """Returns the map, and with a token the stage's last output."""
      name = f"stage{stage + 1}"
      if stage:
        merge = spec.merging_part
        x = merge(x, spec.widths[stage], norm, f"{name}_merge")
      if spec.position_size:
        x = x + module.positions(name, stage, x.shape).astype(dtype)
      size = None
      if spec.has_token(stage):
        size = x.shape[1:3]
        token = module.token(x.shape[-1]).astype(dtype)
        x = join(x, jnp.broadcast_to(token, (x.shape[0], 1, x.shape[-1])))
      for block in spec.stages[stage]:
        x = block_class(
          spec, block, norm, block_norm, train, size, name=block.name
        )(x)
      if spec.stage_norm:
        x = block_norm(name=f"{name}_norm")(x)
      return x if size is None else (split(x, size)[0], x)

    if spec.remat == "stage":
      run_stage = nn.remat(run_stage, policy=KEPT, static_argnums=2)
    x = images.astype(dtype)
    x = spec.stem_part(x, spec.widths[0], norm, gelu)
    features = {}
    for stage in range(len(spec.depths)):
      x = run_stage(self, x, stage)
      name = f"stage{stage + 1}"
      features[name] = x[0] if spec.has_token(stage) else x
    x = x[1] if spec.class_token else x
    if spec.final_norm:
      x = block_norm(name="final_norm")(x)
    if spec.class_token:
      x = x[:, 0].astype(jnp.promote_types(dtype, jnp.float32))
    else:
      x = pool(x)
    return features, classify(spec, x, train, LINEAR_INIT)

  @nn.nowrap
  def positions(
    self, name: str, stage: int, shape: tuple[int, ...]
  ) -> Float[Array, "1 h w c"]:
    """Returns the positions of a stage for a map of that shape."""
    stride = self.spec.feature_info[stage].stride
    side = -(-self.spec.position_size // stride)
    table = self.param(
      f"{name}_positions", LINEAR_INIT, (side, side, shape[-1])
    )
    return resize_positions(table, shape[1:3])[None]

  @nn.nowrap
  def token(self, features: int) -> Float[Array, "1 1 c"]:
    """Returns the class token, with its position where there are any."""
    shape = 1, 1, features
    token = self.param("class_token", LINEAR_INIT, shape)
    if self.spec.position_size:
      token += self.param("class_token_position", LINEAR_INIT, shape)
    return token

  @nn.nowrap
  def adapt(
    self, path: str, array: np.ndarray, shape: tuple[int, ...], source: Any
  ) -> np.ndarray | None:
    """Fits a variable of another model to this one; see `Backbone.adapt`.

    Absolute positions are resized, too.
    """
    if (
      path.endswith("_positions")
      and array.ndim == 3
      and array.shape != shape
      and array.shape[2:] == shape[2:]
    ):
      return np.asarray(resize_positions(array, shape[:2]))
    return super().adapt(path, array, shape, source)

  @nn.nowrap
  def timm_entries(self, shapes: Shapes) -> Entries:
    """Relates all variables to timm's names.

    Args:
      shapes: shapes of the model's variables by path.

    Raises:
      ValueError: if timm has no such model.
    """
    spec = self.spec
    if spec.merging_part.timm is None:
      raise ValueError(f"timm has no such model: merging is {spec.merging!r}")
    stages, head = spec.merging_part.timm
    entries = spec.stem_part.timm_entries(shapes)
    for stage, blocks in enumerate(spec.stages):
      ours, theirs = f"stage{stage + 1}", f"{stages}.{stage}"
      if stage:
        entries |= spec.merging_part.timm_entries(
          f"{ours}_merge", f"{theirs}.downsample", shapes
        )
      for block in blocks:
        entries |= self._block_entries(
          block, f"{theirs}.blocks.{block.index}", shapes
        )
      if spec.stage_norm:
        entries |= layouts.layer_norm(f"{ours}_norm", f"{theirs}.norm")
    if spec.final_norm:
      entries |= layouts.layer_norm("final_norm", "norm")
    if spec.num_classes:
      entries |= layouts.linear("classifier", head)
    return entries

  @nn.nowrap
  def _block_entries(self, block, theirs, shapes):
    ours, operator = block.name, self.spec.operator(block)
    entries = operator.timm_entries(ours, theirs, shapes)
    if any(path not in shapes for e in entries.values() for path in e.paths):
      raise ValueError(
        f"timm has no such model: no transformer with {block.operator}"
      )
    for norm, other in (
      (f"{operator.name}_norm", "norm1"),
      ("mlp_norm", "norm2"),
    ):
      entries |= layouts.layer_norm(f"{ours}/{norm}", f"{theirs}.{other}")
    entries |= layouts.linear(f"{ours}/project", f"{theirs}.attn.proj")
    return entries | mlp.timm_entries(f"{ours}/mlp", f"{theirs}.mlp", shapes)


class EncoderBlock(nn.Module):
  """Computes `x + project(operator(norm(x)))`, then `x + mlp(norm(x))`.

  Attributes:
    network: description of the host.
    spec: description of the block.
    norm: makes the norms within the operator, given their `name`.
    block_norm: makes the block's own norms.
    train: whether paths are dropped.
    size: height and width of the map where `x` is a class token and the pixels
      after it, `[batch, 1 + height · width, channels]`; None where it is a map.
  """

  network: TransformerSpec
  spec: BlockSpec
  norm: Callable[..., nn.Module]
  block_norm: Callable[..., nn.Module]
  train: bool
  size: tuple[int, int] | None = None

  @nn.compact
  def __call__(self, x):
    network, spec = self.network, self.spec
    dtype = jnp.dtype(network.dtype)

    def drop_path(y):
      # One draw per example: the whole branch, or nothing of it.
      return nn.Dropout(
        spec.drop_path,
        broadcast_dims=tuple(range(1, y.ndim)),
        deterministic=not self.train,
      )(y)

    operator = network.operator(spec)
    layer = operator.layer(spec, self.norm, dtype)
    y = self.block_norm(name=f"{operator.name}_norm")(x)
    y = layer(y) if self.size is None else join(*layer(*split(y, self.size)))
    x = x + drop_path(linear(spec.width, dtype, "project")(y))
    y = self.block_norm(name="mlp_norm")(x)
    hidden, conv = network.hidden(spec.stage), network.mlp == "conv"
    return x + drop_path(Mlp(hidden, conv, dtype, name="mlp")(y))


def resize_positions(
  table: Float[Array, "h w c"] | np.ndarray, size: tuple[int, int]
) -> jax.Array:
  """Resizes positions to a map of that height and width, bilinearly."""
  shape = *size, table.shape[-1]
  if table.shape == shape:
    return jnp.asarray(table)
  return jax.image.resize(table, shape, "linear", antialias=False)


def join(
  x: Float[Array, "b h w c"], token: Float[Array, "b 1 c"]
) -> Float[Array, "b n c"]:
  """Puts a token before the pixels of a map."""
  x = x.reshape(x.shape[0], -1, x.shape[-1])
  return jnp.concatenate([token, x], axis=1)


def split(
  x: Float[Array, "b n c"], size: tuple[int, int]
) -> tuple[Float[Array, "b h w c"], Float[Array, "b 1 c"]]:
  """Undoes `join`."""
  return x[:, 1:].reshape(x.shape[0], *size, x.shape[-1]), x[:, :1]
