"""The folder of one run: what it holds, and whose it is.

config.json    the complete config; another one is refused
labels.txt     the names of the classes, a line each
checkpoints/   one folder per saved step
metrics.jsonl  a JSON object per line: the step and its figures
tensorboard/   the same for TensorBoard
results.json   how the run ended; written last
"""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import ml_collections

from halonet.errors import UsageError
from halonet.training import config as config_lib


class Workdir:
  """Paths of a run, and its small files."""

  def __init__(self, path: str):
    if "://" in path:
      raise UsageError(f"--workdir is {path}; it must be a local folder")
    self.path = pathlib.Path(path)
    self.checkpoints = self.path / "checkpoints"
    self.metrics = self.path / "metrics.jsonl"
    self.tensorboard = self.path / "tensorboard"
    self._config = self.path / "config.json"
    self._labels = self.path / "labels.txt"
    self._results = self.path / "results.json"

  @contextlib.contextmanager
  def claim(self, config: ml_collections.ConfigDict) -> Iterator[None]:
    """Holds the folder for a run of this config.

    Raises:
      UsageError: if the folder cannot be written, belongs to another config or
        to something else, or another process trains in it.
    """
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      strangers = [
        path.name for path in self.path.iterdir() if path.name[0] != "."
      ]
      if strangers and not self._config.exists():
        raise UsageError(
          f"--workdir {self.path} holds {strangers[0]} but no config.json, so"
          " it is not the folder of a run; name a new one"
        )
      lock = open(self.path / ".lock", "w")  # noqa: SIM115  Closed below.
    except OSError as error:
      raise UsageError(
        f"--workdir {self.path} cannot be written: {error.strerror}"
      ) from None
    with lock:
      try:
        # Given up by the system, too, however the process ends.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError:
        raise UsageError(
          f"another process is training in {self.path}; wait for it, or name"
          " another --workdir"
        ) from None
      if self._config.exists():
        changed = config_lib.differences(self.config(), config)
        if changed:
          raise UsageError(
            f"--workdir {self.path} belongs to another config ("
            + ", ".join(changed)
            + "); undo the change, or name a new --workdir"
          )
      yield

  def write_config(self, config: ml_collections.ConfigDict) -> None:
    """Makes the folder this config's, once nothing is wrong with it."""
    if not self._config.exists():
      _write(self._config, config_lib.to_json(config))

  def config(self) -> ml_collections.ConfigDict:
    """Reads the run's config; UsageError if this is not a run's folder."""
    try:
      return config_lib.from_json(self._config.read_text())
    except (OSError, ValueError) as error:
      raise UsageError(
        f"--workdir {self.path} is not the folder of a run:"
        f" {self._config.name}: {error}"
      ) from None

  def results(self) -> dict[str, Any] | None:
    """What the finished run wrote, or None while it is not finished."""
    if not self._results.exists():
      return None
    try:
      return json.loads(self._results.read_text())
    except ValueError as error:
      raise UsageError(
        f"{self._results} is damaged ({error}); move it away, and the same"
        " command writes it again"
      ) from None

  def labels(self) -> list[str]:
    try:
      return self._labels.read_text().splitlines()
    except OSError as error:
      raise UsageError(
        f"{self._labels} cannot be read: {error.strerror}; training writes it"
        " when it goes on"
      ) from None

  def write_labels(self, labels: list[str]) -> None:
    _write(self._labels, "".join(f"{label}\n" for label in labels))

  def write_results(self, results: dict[str, Any]) -> None:
    _write(self._results, json.dumps(results, indent=2) + "\n")


def _write(path, text):
  """Writes a file as a whole or not at all."""
  draft = path.with_name(f".{path.name}.tmp")
  with open(draft, "w") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  draft.replace(path)
