"""The contract between a host and its parts."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from halonet.fields import MOST_WIDTH, field
from halonet.layers.layouts import Entries, Shapes, norm, same
from halonet.layers.projections import check_heads

Norm = Callable[..., nn.Module]  # Makes a norm, given its `name`.
Activation = Callable[[jax.Array], jax.Array]


@runtime_checkable
class Site(Protocol):
  """A block of a host, as operators see it.

  Attributes:
    name: name of the block's module, such as `stage2_block1`.
    stage: number of its stage, from 0.
    index: number of the block in its stage, from 0.
    width: channels that the operator receives; most put out as many.
    stride: pixels between neighbouring outputs.
  """

  name: str
  stage: int
  index: int
  width: int
  stride: int


class Operator:
  """What a block does in space; base class of all operators.

  A subclass is a frozen dataclass whose fields are declared by
  `halonet.fields.field`; they become fields of every model that uses it.

  Attributes:
    name: name of its layer in the block, and so in parameter paths; the norm
      that the host puts after it, or before it, is `{name}_norm`.
    takes_token: whether its layer may be called with a map and a class token,
      `[batch, 1, channels]`, and then returns both.
    per_stage: fields that must have one item per stage.
  """

  name: ClassVar[str] = "attention"
  takes_token: ClassVar[bool] = False
  per_stage: ClassVar[tuple[str, ...]] = ()

  def layer(self, block: Site, norm: Norm, dtype: DTypeLike) -> nn.Module:
    """Makes the layer of a block, a module called `self.name`.

    Args:
      block: where it will be.
      norm: makes a norm of the host's kind, given its `name`.
      dtype: of the computation.

    Returns:
      A module that maps `[batch, height, width, block.width]` to `[batch,
      ⌈height/stride⌉, ⌈width/stride⌉, …]`.
    """
    raise NotImplementedError

  def window(self, block: Site) -> int | None:
    """Returns the side in pixels of the square that a block's queries may see.

    None means that it is not attention, or that it sees the whole map.
    """
    return None

  def check(self, block: Site) -> None:
    """Raises ValueError unless the layer can be in this block."""

  def adapt(
    self, name: str, array: Any, shape: tuple[int, ...], source: "Operator"
  ) -> Any:
    """Fits a variable of another model's layer to this one.

    Args:
      name: path of the variable within the layer.
      array: its value.
      shape: shape that it must have here.
      source: operator that `array` comes from, of the same class.

    Returns:
      An array of that shape, or None if there is no way.
    """
    return array if array.shape == shape else None

  def timm_entries(self, ours: str, theirs: str, shapes: Shapes) -> Entries:
    """Returns the layer's weights, and its norm's, by timm's names.

    Args:
      ours: path of the block.
      theirs: timm's path of the block.
      shapes: shapes of the model's variables.

    Raises:
      ValueError: if timm has no such operator.
    """
    raise ValueError(f"timm has no such model: nothing like {type(self)}")


class Stem:
  """First layers of a host; base class of all stems.

  A subclass is a frozen dataclass whose fields are declared by
  `halonet.fields.field`, like those of an `Operator`.

  Attributes:
    stride: input pixels per pixel of the stem's output.
    stage_stride: stride with which the first stage of a ResNet begins.
  """

  stride: int = 4
  stage_stride: int = 1

  def check(self, width: int) -> None:
    """Raises ValueError unless the stem can put out `width` channels."""

  def __call__(
    self, x: jax.Array, width: int, norm: Norm, activation: Activation
  ) -> jax.Array:
    """Maps `[batch, height, width, channels]` to `[batch, ⌈height/stride⌉,
    ⌈width/stride⌉, width]`, in the dtype of `x`.

    Called in a compact method, whose module owns the stem's layers.
    """
    raise NotImplementedError

  def timm_entries(self, shapes: Shapes) -> Entries:
    """Returns the weights by timm's names.

    Raises:
      ValueError: if timm has no such stem.
    """
    raise ValueError(f"timm has no such model: nothing like {type(self)}")


@dataclasses.dataclass(frozen=True)
class Attention(Operator):
  """Base class of operators with heads and relative tables."""

  per_stage = ("heads",)
  half_tables: ClassVar[bool] = True

  heads: tuple[int, ...] = field(
    (4, 8, 8, 8),
    "Attention heads of each stage. The default is that of HaloNet's H0 to H7.",
    least=1,
    most=MOST_WIDTH,
  )

  def widths(self, block: Site) -> tuple[int, int]:
    """Returns the channels of all queries and of all values together."""
    return block.width, block.width

  def shared(self, block: Site, dtype: DTypeLike) -> dict[str, Any]:
    """Returns the attributes that all layers of attention have."""
    qk_features, value_features = self.widths(block)
    return dict(
      heads=self.heads[block.stage],
      qk_features=qk_features,
      value_features=value_features,
      stride=block.stride,
      dtype=dtype,
      name=self.name,
    )

  def check(self, block: Site) -> None:
    heads, widths = self.heads[block.stage], self.widths(block)
    if max(widths) > MOST_WIDTH:
      raise ValueError(
        f"queries and values have {' and '.join(map(str, widths))} channels;"
        f" there may be at most {MOST_WIDTH}"
      )
    check_heads(heads, *widths, self.half_tables)

  def dead_rows(self) -> int:
    """Returns how many first rows of a relative table meet no key."""
    return 0

  def adapt(
    self, name: str, array: Any, shape: tuple[int, ...], source: Operator
  ) -> Any:
    """Resizes relative tables about offset 0; see `resize_table`.

    Tables of an even number of offsets have no middle and are refused.
    """
    old, new = source.dead_rows(), self.dead_rows()
    if (
      not name.startswith("relative_")
      or array.shape[1:] != shape[1:]
      # Dead rows of another number may hide that the offsets differ.
      or (array.shape == shape and old == new)
    ):
      return super().adapt(name, array, shape, source)
    offsets = len(array) - old, shape[0] - new
    if not all(number % 2 for number in offsets):
      return None
    return np.pad(resize_table(array[old:], offsets[1]), ((new, 0), (0, 0)))


def resize_table(table: np.ndarray, offsets: int) -> np.ndarray:
  """Resizes a relative table linearly, about offset 0.

  Args:
    table: `[2·r + 1, d]`, an embedding for each offset −r … r.
    offsets: 2·s + 1, the number of offsets −s … s to be.

  Returns:
    `[2·s + 1, d]` in the table's dtype; row s + o is the embedding of offset
    o·r/s, interpolated between the two nearest.
  """
  old, new = len(table) // 2, offsets // 2
  place = np.arange(-new, new + 1) * old / max(new, 1)
  distance = np.abs(place[:, None] - np.arange(-old, old + 1))
  weights = np.maximum(1 - distance, 0)
  return (weights @ table).astype(table.dtype)


def check_map(x: jax.Array, name: str = "x") -> None:
  """Raises ValueError unless x is a floating-point map in a batch."""
  if x.ndim != 4:
    advice = f"; add a batch axis with {name}[None]" if x.ndim == 3 else ""
    raise ValueError(
      f"{name} must be [batch, height, width, channels], not"
      f" {list(x.shape)}{advice}"
    )
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f"{name} has dtype {x.dtype}; it must be floating-point, and images"
      " normalised as in training"
    )


def round_to_eight(width: float) -> int:
  """Returns the nearest multiple of eight not more than a tenth below."""
  rounded = max(8, int(width + 4) // 8 * 8)
  return rounded if rounded >= 0.9 * width else rounded + 8


def average_pool(
  x: Float[Array, "b h w c"], size: int
) -> Float[Array, "b oh ow c"]:
  """Averages size × size squares; at the border, only real pixels."""
  if size == 1:
    return x
  return nn.avg_pool(
    x, (size, size), (size, size), "SAME", count_include_pad=False
  )


def position_entries(ours: str, theirs: str) -> Entries:
  """Returns the norm and the relative tables of an attention in timm."""
  entries = norm(f"{ours}/attention_norm", f"{theirs}.post_attn")
  for axis in ("height", "width"):
    entries |= same(
      f"params/{ours}/attention/relative_{axis}",
      f"{theirs}.self_attn.pos_embed.{axis}_rel",
    )
  return entries
