"""Checks of the arguments of attention, with messages for the caller."""

import numbers

from halonet.ops import positions


def check_blocked(
  query, key, value, tables, block_size, halo_size, stride, relative_stride
):
  """Raises ValueError unless `blocked_local_attention` can take these."""
  check_count("block_size", block_size)
  check_count("halo_size", halo_size, least=0)
  check_count("stride", stride)
  if relative_stride is not None and not 1 <= relative_stride <= stride:
    raise ValueError(
      f"relative_stride is {relative_stride}; it must be from 1 to the stride,"
      f" {stride}"
    )
  check_arrays(query, key, value)
  offsets = positions.num_offsets(block_size, halo_size)
  asked = (
    f"block_size {block_size} and halo_size {halo_size} ask for 2·(block_size +"
    f" halo_size) − 1 = {offsets} rows"
  )
  check_tables(query, tables, offsets, asked)


def check_count(name, value, least=1):
  """Raises ValueError unless a whole number is at least `least`."""
  if not isinstance(value, numbers.Integral) or value < least:
    raise ValueError(
      f"{name} is {value}; it must be a whole number of at least {least}"
    )


def check_arrays(query, key, value):
  """Raises ValueError unless the maps fit together; the key may be None."""
  if query.ndim != 5:
    raise ValueError(
      "query must be [batch, height, width, heads, head_dim], not"
      f" {list(query.shape)}"
    )
  if 0 in query.shape[1:]:
    raise ValueError(f"query is empty: its shape is {list(query.shape)}")
  given = f"query {query.shape}"
  if key is not None:
    given += f", key {key.shape}"
  same = value.shape[:-1] == query.shape[:-1]
  if not same or (key is not None and key.shape != query.shape):
    raise ValueError(
      f"{given} and value {value.shape} must agree in all but the last axis of"
      " value"
    )


def check_tables(query, tables, rows, asked):
  """Raises ValueError, with `asked` in it, unless both tables have `rows`.

  Both may be None.
  """
  names = "relative_height", "relative_width"
  missing = [table is None for table in tables]
  if all(missing):
    return
  if any(missing):
    raise ValueError(f"{' and '.join(names)} must both be given, or neither")
  for name, table in zip(names, tables, strict=True):
    if table.ndim != 2 or table.shape[0] != rows:
      raise ValueError(f"{name} has shape {table.shape}; {asked}")
    if table.shape[1] > query.shape[-1]:
      raise ValueError(
        f"{name} is {table.shape[1]} wide, wider than head_dim"
        f" {query.shape[-1]}"
      )
