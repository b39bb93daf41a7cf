"""Compiled programs kept on disk, so that the next start need not compile."""

import os
import pathlib

import jax
from etils import epath

_BYTES = 4 << 30  # The least recently used make room beyond that.
# What compiles faster is not kept. By JAX's own limit of a second, `predict`
# would compile a small model each time.
_SECONDS = 0.1


def keep_programs(workdir: str | None = None, wanted: bool = True) -> str:
  """Turns JAX's persistent compilation cache on or off, before it is needed.

  Its folder is that of the environment variable JAX_COMPILATION_CACHE_DIR, or
  `compiled` in a workdir that is not local, because the disk of a preempted TPU
  VM is lost, or `halonet/compiled` in the user's folder for caches. Several
  processes may share it. JAX tells its own versions and devices apart.

  Args:
    workdir: folder of the run, if there is one.
    wanted: the run's field `compilation_cache`.

  Returns:
    A sentence that says where the programs are, or why they are not kept.
  """
  # JAX turns it on by itself where its variable names a folder.
  jax.config.update("jax_enable_compilation_cache", wanted)
  if not wanted:
    return "Compiled programs are not kept: config.compilation_cache is False"
  folder = jax.config.jax_compilation_cache_dir
  if not folder:
    if workdir and "://" in workdir:
      folder = f"{workdir}/compiled"
    else:
      caches = (
        os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
      )
      folder = str(pathlib.Path(caches) / "halonet" / "compiled")
      jax.config.update("jax_compilation_cache_max_size", _BYTES)
    try:
      epath.Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
      return f"Compiled programs are not kept: {folder}: {error.strerror}"
    jax.config.update("jax_compilation_cache_dir", folder)
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)
  return f"Compiled programs are kept in {folder}"
