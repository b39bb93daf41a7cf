"""PyTorch's layouts of our parameters, by which weights are exchanged.

Each function returns `Layout`s by the other library's name. `ours` and `theirs`
are the paths of a module here and there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Shapes = dict[str, tuple[int, ...]]


class Layout(NamedTuple):
  """Relates some of our variables to one array of another library.

  Attributes:
    paths: paths of our variables, such as `params/stem/kernel`.
    export: makes the other library's array of them.
    read: makes them of that array; inverse of `export`.
  """

  paths: tuple[str, ...]
  export: Callable[..., Any]
  read: Callable[..., Any]


Entries = dict[str, Layout]


def same(ours: str, theirs: str) -> Entries:
  """Relates a variable to an equal array."""
  return {theirs: Layout((ours,), lambda x: x, lambda x: (x,))}


def transposed(ours: str, theirs: str, *axes: int) -> Entries:
  """Relates a variable to the array with its axes in another order."""
  back = np.argsort(axes)
  entry = Layout(
    (f"params/{ours}/kernel",),
    lambda x: x.transpose(axes),
    lambda x: (x.transpose(back),),
  )
  return {f"{theirs}.weight": entry}


def conv(ours: str, theirs: str, shapes: Shapes) -> Entries:
  """Relates a 2D convolution, or a 1×1 one that is a `nn.Dense` here."""
  kernel = f"params/{ours}/kernel"
  if len(shapes[kernel]) == 4:
    return transposed(ours, theirs, 3, 2, 0, 1)
  entry = Layout(
    (kernel,), lambda x: x.T[..., None, None], lambda x: (x[..., 0, 0].T,)
  )
  return {f"{theirs}.weight": entry}


def bias(ours: str, theirs: str) -> Entries:
  """Relates the bias of a layer."""
  return same(f"params/{ours}/bias", f"{theirs}.bias")


def linear(ours: str, theirs: str) -> Entries:
  """Relates a `nn.Dense` with bias."""
  return transposed(ours, theirs, 1, 0) | bias(ours, theirs)


def layer_norm(ours: str, theirs: str) -> Entries:
  """Relates a layer norm."""
  return same(f"params/{ours}/scale", f"{theirs}.weight") | bias(ours, theirs)


def norm(ours: str, theirs: str) -> Entries:
  """Relates a batch norm, running statistics included."""
  return (
    layer_norm(ours, theirs)
    | same(f"batch_stats/{ours}/mean", f"{theirs}.running_mean")
    | same(f"batch_stats/{ours}/var", f"{theirs}.running_var")
  )


def conv_norm(ours: str, theirs: str, shapes: Shapes) -> Entries:
  """Relates timm's `ConvNormAct`; our norm is called `{ours}_norm`."""
  return conv(ours, f"{theirs}.conv", shapes) | norm(
    f"{ours}_norm", f"{theirs}.bn"
  )


def joined_projections(
  ours: str, theirs: str, names: tuple[str, ...], shapes: Shapes
) -> Entries:
  """Relates projections that are one convolution there, one after the other."""
  return _joined(ours, theirs, names, shapes, as_conv, lambda x: x[..., 0, 0])


def joined_linears(
  ours: str, theirs: str, names: tuple[str, ...], shapes: Shapes
) -> Entries:
  """Relates projections with biases that are one linear layer there."""
  paths = tuple(f"params/{ours}/{name}/bias" for name in names)
  heads = [shapes[path][0] for path in paths]
  cuts = np.cumsum([np.prod(shapes[path]) for path in paths])[:-1]
  biases = Layout(
    paths,
    lambda *x: np.concatenate([each.ravel() for each in x]),
    lambda x: tuple(
      part.reshape(number, -1)
      for part, number in zip(np.split(x, cuts), heads, strict=True)
    ),
  )
  weights = _joined(
    ours,
    theirs,
    names,
    shapes,
    lambda x: x.reshape(-1, x.shape[-1]),
    lambda x: x,
  )
  return weights | {f"{theirs}.bias": biases}


def _joined(ours, theirs, names, shapes, flatten, as_matrix):
  paths = tuple(f"params/{ours}/{name}/kernel" for name in names)
  heads = [shapes[path][1] for path in paths]
  cuts = np.cumsum([np.prod(shapes[path][1:]) for path in paths])[:-1]

  def read(array):
    parts = np.split(as_matrix(array), cuts)
    return tuple(
      from_rows(part.reshape(number, -1, part.shape[-1]))
      for part, number in zip(parts, heads, strict=True)
    )

  def export(*kernels):
    return np.concatenate([flatten(to_rows(kernel)) for kernel in kernels])

  return {f"{theirs}.weight": Layout(paths, export, read)}


def to_rows(kernel: Any) -> Any:
  """`[in, heads, d]` → `[heads, d, in]`."""
  return kernel.transpose(1, 2, 0)


def from_rows(rows: Any) -> Any:
  """`[heads, d, in]` → `[in, heads, d]`."""
  return rows.transpose(2, 0, 1)


def as_conv(rows: Any) -> Any:
  """`[heads, d, in]` → `[heads · d, in, 1, 1]`."""
  return rows.reshape(-1, rows.shape[-1])[..., None, None]
