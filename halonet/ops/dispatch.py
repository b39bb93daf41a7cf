"""Finds the form that serves a layer, and says why a faster one does not."""

import contextlib
import contextvars
import functools
import logging
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from halonet.errors import UsageError
from halonet.ops.forms.chunked import Chunked
from halonet.ops.forms.direct import Direct
from halonet.ops.forms.folded import Folded
from halonet.ops.forms.form import Form, Place, Shaped
from halonet.ops.forms.gpu.pallas_gpu import PallasGpu
from halonet.ops.forms.packed import Packed
from halonet.ops.forms.tpu.pallas_tpu import PallasTpu
from halonet.ops.neighbourhood import Neighbourhood
from halonet.ops.positions import Tables

# "auto" is the first that suits the place and does not refuse the layer.
FORMS: tuple[Form, ...] = (
  PallasTpu(),
  Packed(),
  PallasGpu(),
  Chunked(),
  Folded(),
  Direct(),
)
IMPLEMENTATIONS = ("auto", *(form.name for form in FORMS))
_FALLBACK = Folded.name  # Serves every layer everywhere.
_LOGGER = logging.getLogger(__name__)
_forced = contextvars.ContextVar("forced implementation", default=None)


class Unserved(UsageError, ValueError):
  """The implementation that was asked for cannot serve a layer."""


@contextlib.contextmanager
def implementation(name: str) -> Iterator[None]:
  """Forces a form on every attention that is traced inside.

  Where the form cannot serve a layer, "xla" does. A function that `jax.jit`
  has traced before keeps the form that it has.

  Args:
    name: one of `IMPLEMENTATIONS`.

  Raises:
    ValueError: if there is no such implementation.
  """
  _check(name)
  token = _forced.set(name)
  try:
    yield
  finally:
    _forced.reset(token)


def forced() -> str | None:
  """Returns the name of the form that `implementation` forces here."""
  return _forced.get()


def unshared(place: Place) -> str | None:
  """Says that devices are not told how to share a batch, or returns None."""
  if not place.mesh.empty or place.devices == 1:
    return None
  return (
    f"there are {place.devices} devices, and no mesh in context says how they"
    " share a batch: call the model under jax.set_mesh(mesh) or"
    " jax.sharding.use_abstract_mesh(mesh.abstract_mesh)"
  )


def attend(
  name: str,
  query: jax.Array,
  key: jax.Array | None,
  value: jax.Array,
  tables: Tables,
  layer: Neighbourhood,
) -> jax.Array:
  """Computes an attention by the form that `choose` finds.

  Arguments and result are those of `Form.attend`, and `name` is one of
  `IMPLEMENTATIONS`.
  """
  place = Place.current()
  form = choose(name, query, key, value, layer, place)
  if key is None and not form.keyless:
    key = jnp.zeros_like(query)
  return form.attend(query, key, value, tables, layer, place)


def choose(
  name: str,
  query: Shaped,
  key: Shaped | None,
  value: Shaped,
  layer: Neighbourhood,
  place: Place,
) -> Form:
  """Finds the form that serves a layer, and logs it once.

  Args:
    name: one of `IMPLEMENTATIONS`; `implementation` overrides it.
    query: as for `Form.attend`, like the arguments that follow; only shapes and
      dtypes are looked at.

  Raises:
    ValueError: if there is no such implementation.
    Unserved: if the form of that name cannot serve the layer.
  """
  _check(name)
  name = forced() or name
  asked = query, key, value, layer, place
  if name == "auto":
    return _preferred(*asked)
  form = _find(name)
  reason = _refusal(form, *asked)
  if reason is not None:
    if not forced():
      raise Unserved(
        f"implementation is {name!r}, which cannot serve this: {reason};"
        " 'auto' falls back to XLA"
      )
    form = _find(_FALLBACK)
  if forced():  # What is forced is no news to whoever forced it.
    return form
  where = form.kernels_for
  if where in (None, place.platform):
    log_once(f"attention: {form.name}")
  else:
    chip = where.upper()
    log_once(
      f"attention: {form.name}, interpreted without a {chip}, which is slow"
    )
  return form


def _preferred(query, key, value, layer, place):
  """Returns the first form that suits the place and refuses nothing."""
  reasons = []
  for form in FORMS:
    if not form.suits(place):
      continue
    reason = _refusal(form, query, key, value, layer, place)
    if reason is None and form.kernels_for:
      reason = unshared(place)
    if reason is None:
      break
    reasons.append(f", not {form.name} ({reason})")
  level = logging.WARNING if reasons else logging.INFO
  log_once(f"attention: {form.name}{''.join(reasons)}", level)
  return form


def _refusal(form, query, key, value, layer, place):
  """Says why a form cannot serve a layer, or returns None."""
  if form.kernels_for:
    reason = place.refuses_kernels(query, key, value)
    if reason is not None:
      return reason
  return form.refuses(query, value, layer, place)


def _find(name):
  return next(form for form in FORMS if form.name == name)


def _check(name):
  if name not in IMPLEMENTATIONS:
    raise ValueError(
      f"implementation is {name!r}; it must be one of"
      f" {', '.join(IMPLEMENTATIONS)}"
    )


@functools.cache
def log_once(message: str, level: int = logging.INFO) -> None:
  """Logs a message unless it has been logged before."""
  _LOGGER.log(level, message)
