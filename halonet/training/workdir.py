"""The folder of one run: what it holds, and whose it is.

config.json    the complete config; another one is refused
metadata.json  what the task knows of the data set, such as names of classes
data.json      which files the run began with; others are refused
checkpoints/   one folder per saved step
metrics.jsonl  a JSON object per line: the step and its figures
tensorboard/   the same for TensorBoard, and profiler traces
results.json   how the run ended; written last

It is a local folder, or one of a bucket: gs://BUCKET/FOLDER.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any

import ml_collections
from etils import epath

from halonet.errors import UsageError
from halonet.training import config as config_lib


class Workdir:
  """Paths of a run, and its small files."""

  def __init__(self, path: str):
    scheme, separator, _ = path.partition("://")
    if separator and scheme != "gs":
      raise UsageError(
        f"--workdir is {path}; it must be a local folder or gs://BUCKET/FOLDER"
      )
    self.path = epath.Path(path)
    self.is_local = not separator
    self.checkpoints = self.path / "checkpoints"
    self.metrics = self.path / "metrics.jsonl"
    self.tensorboard = self.path / "tensorboard"
    self._config = self.path / "config.json"
    self._metadata = self.path / "metadata.json"
    self._labels = self.path / "labels.txt"  # Of a run before there were tasks.
    self._data = self.path / "data.json"
    self._results = self.path / "results.json"

  @contextlib.contextmanager
  def claim(self, config: ml_collections.ConfigDict) -> Iterator[list[str]]:
    """Holds the folder for a run of this config.

    A bucket knows no locks: there, nothing stops a second run but its user.

    Yields:
      The fields in which a run that goes on now differs from before, of those
      that may.

    Raises:
      UsageError: if the folder cannot be written, belongs to another config or
        to something else, or another process trains in it.
    """
    with contextlib.ExitStack() as stack:
      try:
        self.path.mkdir(parents=True, exist_ok=True)
        strangers = [
          path.name
          for path in self.path.iterdir()
          if path.name[0] != "." and not _is_empty_folder(path)
        ]
        if strangers and not self._config.exists():
          raise UsageError(
            f"--workdir {self.path} holds {strangers[0]} but no config.json, so"
            " it is not the folder of a run; name a new one"
          )
        if self.is_local:
          lock = stack.enter_context(open(self.path / ".lock", "w"))
      except _file_errors() as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
          f"--workdir {self.path} cannot be written: {reason.splitlines()[0]}"
        ) from None
      if self.is_local:
        try:
          # Given up by the system, too, however the process ends.
          fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
          raise UsageError(
            f"another process is training in {self.path}; wait for it, or name"
            " another --workdir"
          ) from None
      changed = []
      if self._config.exists():
        refused, changed = config_lib.differences(self.config(), config)
        if refused:
          raise UsageError(
            f"--workdir {self.path} belongs to another config ("
            + ", ".join(refused)
            + "); undo the change, or name a new --workdir"
          )
      yield changed

  def write_config(self, config: ml_collections.ConfigDict) -> None:
    """Makes the folder this config's, once nothing is wrong with it."""
    self._write(self._config, config_lib.to_json(config))

  def config(self) -> ml_collections.ConfigDict:
    """Reads the run's config; UsageError if this is not a run's folder."""
    try:
      return config_lib.from_json(self._config.read_text())
    except FileNotFoundError:
      raise UsageError(
        f"--workdir {self.path} is not the folder of a run: it has no"
        f" {self._config.name}"
      ) from None
    except (OSError, ValueError) as error:
      reason = getattr(error, "strerror", None) or error
      raise UsageError(
        f"--workdir {self.path} is not the folder of a run:"
        f" {self._config.name} cannot be read: {reason}"
      ) from None

  def results(self) -> dict[str, Any] | None:
    """Reads what the finished run wrote; None while it is not finished."""
    if not self._results.exists():
      return None
    try:
      return json.loads(self._results.read_text())
    except ValueError as error:
      raise UsageError(
        f"{self._results} is damaged ({error}); move it away, and the same"
        " command writes it again"
      ) from None

  def metadata(self) -> dict[str, Any]:
    """Reads what the task knows of the data set; UsageError without it."""
    try:
      if self._labels.exists() and not self._metadata.exists():
        return {"labels": self._labels.read_text().splitlines()}
      return json.loads(self._metadata.read_text())
    except (OSError, ValueError) as error:
      reason = getattr(error, "strerror", None) or error
      raise UsageError(
        f"{self._metadata} cannot be read: {reason}; training writes it when it"
        " goes on"
      ) from None

  def check_metadata(self, metadata: dict[str, Any]) -> None:
    """Raises UsageError if the run began with other metadata."""
    begun = self._metadata.exists() or self._labels.exists()
    if begun and self.metadata() != json.loads(json.dumps(metadata)):
      raise UsageError(
        f"the data set's {', '.join(metadata)} are not those that the run in"
        f" {self.path} began with; put them back, or name a new --workdir"
      )

  def write_metadata(self, metadata: dict[str, Any]) -> None:
    self._write(self._metadata, json.dumps(metadata, indent=2) + "\n")

  def check_data(self, data: dict[str, Any]) -> None:
    """Raises UsageError if the run began with other data than `data`.

    The order of an epoch, and so the place in it, is that of these files.
    """
    if not self._data.exists():
      return
    before = json.loads(self._data.read_text())
    for name, value in data.items():
      if before.get(name) != value:
        raise UsageError(
          f"the {name} are not those that the run in {self.path} began with"
          f" ({before.get(name)} → {value}); put them back, or name a new"
          " --workdir"
        )

  def write_data(self, data: dict[str, Any]) -> None:
    self._write(self._data, json.dumps(data, indent=2) + "\n")

  def write_results(self, results: dict[str, Any]) -> None:
    self._write(self._results, json.dumps(results, indent=2) + "\n")

  def _write(self, path, text):
    """Writes a file as a whole or not at all."""
    if not self.is_local:
      path.write_text(text)  # An object of a bucket appears when it is whole.
      return
    draft = path.with_name(f".{path.name}.tmp")
    with open(draft, "w") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(draft, path)


def _is_empty_folder(path):
  return path.is_dir() and not any(path.iterdir())


def _file_errors():
  """Returns the errors that files raise; on gs:// they are TensorFlow's.

  Call it only after an error: importing TensorFlow takes seconds.
  """
  from halonet.data.runtime import tf

  return OSError, tf.errors.OpError
