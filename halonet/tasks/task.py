"""What a task is: examples, loss, figures and predictions of one kind.

The training loop, the step, checkpoints, sweeps and the commands know this
interface alone. `config.task` names a task. It is made for a config, and for
the metadata of a data set once that is known: `make_task(config, metadata)`.
"""

import abc
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from halonet.data.images import square_input
from halonet.errors import UsageError, unknown
from halonet.fields import Field

if TYPE_CHECKING:
  import ml_collections
  from PIL import Image

Rows = dict[str, Any]
Spec = dict[str, tuple[tuple[int, ...], str]]


class Evaluator(abc.ABC):
  """Gathers, on the host, what `Task.measure` says of each batch."""

  @abc.abstractmethod
  def add(self, measured: Any) -> None:
    """Adds a batch; NumPy arrays in the structure that `measure` returned."""

  @abc.abstractmethod
  def figures(self, images: int) -> dict[str, float]:
    """Returns the figures of the split, of which `images` images counted."""

  def records(self) -> list[dict[str, Any]] | None:
    """Returns what the model answered, for a JSON; None if it is not kept."""
    return None


class Task(abc.ABC):
  """What is learned.

  Attributes:
    best: figure of the evaluation to maximise, by which checkpoints are chosen.
    needs: features of a data set, beside `image`, with their kinds, as names
      of classes of `tfds.features`.
    decides: model fields that follow from the metadata, which a config does
      not have.
    finds: whether the answers have places in the image, which `find` returns,
      and the model sees the whole image.
    FIELDS: config fields that belong to the task, by dotted names.
    config: complete training config.
    metadata: what `describe` returned for the data set; {} before that.
  """

  best: str
  needs: Mapping[str, str] = {}
  decides: tuple[str, ...] = ()
  finds: bool = False
  FIELDS: Mapping[str, Field] = {}

  def __init__(
    self,
    config: "ml_collections.ConfigDict",
    metadata: Mapping[str, Any] | None = None,
  ):
    self.config = config
    self.metadata = dict(metadata or {})

  # ------------------------------------------------------------------- set-up

  def check(self) -> None:  # noqa: B027  Optional.
    """Raises UsageError if fields of the config contradict one another."""

  def check_model(self, model: Any) -> None:  # noqa: B027  Optional.
    """Raises UsageError if the config's model answers something else."""

  def check_rows(self, rows: int) -> None:  # noqa: B027  Optional.
    """Raises UsageError if `rows` examples cannot be computed at once."""

  @abc.abstractmethod
  def describe(self, source: Any) -> dict[str, Any]:
    """Returns what model and predictions need to know of a data set.

    It is kept in the workdir as JSON.
    """

  @abc.abstractmethod
  def model_fields(self) -> dict[str, Any]:
    """Returns the model fields that it `decides`."""

  # --------------------------------------------------------------------- data

  def batch_spec(self, train: bool) -> Spec:
    """Says what a batch holds: name → (shape of a row, dtype).

    `image` is what the model takes, `[image_size, image_size, 3]`. `weight` is
    0 for a row that does not count and 1 elsewhere; a training batch has it
    only if corrupt images are skipped. `skipped`, in evaluation, is 1 for a
    corrupt image.
    """
    data = self.config.data
    size = data.image_size
    spec = {"image": ((size, size, 3), data.image_dtype), **self.targets(train)}
    if data.skip_corrupt or not train:
      spec["weight"] = ((), "float32")
    if data.skip_corrupt and not train:
      spec["skipped"] = ((), "float32")
    return spec

  @abc.abstractmethod
  def targets(self, train: bool) -> Spec:
    """Says what a batch holds beside `image` and what every batch has."""

  @abc.abstractmethod
  def example(self, record: Rows, seed: Any, train: bool) -> Rows:
    """Makes an example from a record, in TensorFlow without AutoGraph.

    Args:
      record: `image`, an encoded image, and the features that the task needs.
      seed: two int32 numbers that decide every random choice.
      train: whether to augment.

    Returns:
      `image`, uint8, the targets, and what `finish` needs beside them.
    """

  def finish(self, batch: Rows, train: bool) -> Rows:
    """Turns a batch of examples into what `batch_spec` says, in TensorFlow.

    The images are normalised already.
    """
    del train
    return batch

  def problem(self, batch: Mapping[str, np.ndarray]) -> str | None:
    """Says what is wrong with a batch; None if nothing is."""
    del batch
    return None

  # ------------------------------------------------------------------- device

  @abc.abstractmethod
  def prepare(self, batch: Rows) -> Rows:
    """Prepares a whole global training batch on the devices.

    What is normalised over the batch, such as weights, is normalised here: the
    rows may be computed in parts afterwards, whose losses are added up.
    """

  @abc.abstractmethod
  def loss(
    self, outputs: Any, rows: Rows
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss of some rows, and metrics, as sums over the rows.

    Over all rows of a batch they add up to the batch's means.
    """

  @abc.abstractmethod
  def measure(self, outputs: Any, batch: Rows) -> Any:
    """Measures an evaluation batch on the devices, for an `Evaluator`.

    Returns:
      Arrays in any structure: sums over the rows of weight 1, or one entry per
      row.
    """

  # --------------------------------------------------------------------- host

  @abc.abstractmethod
  def evaluator(self) -> Evaluator:
    """Returns an empty evaluator."""

  def words(self, figures: Mapping[str, float]) -> str:
    """Words figures of an evaluation in a line."""
    return ", ".join(
      f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
      for name, value in figures.items()
    )

  def input(self, image: "Image.Image") -> np.ndarray:
    """Prepares an RGB image for the model, as evaluation does."""
    return square_input(image, self.config.data)

  def input_words(self) -> str:
    """Says what `input` does to an upright image, in words for people."""
    data = self.config.data
    return (
      f"The central square whose side is {data.crop_fraction:g} of the shorter"
      f" side, resized to {data.image_size} pixels, {data.interpolation}"
    )

  def explain(self, output: Any, top: int) -> list[str]:
    """Words the best `top` answers for one image; not called if the task
    `finds`."""
    raise NotImplementedError

  def find(
    self, output: Any, top: int, size: tuple[int, int]
  ) -> list[dict[str, Any]]:
    """Returns what is found in an image, best first, if the task `finds`.

    Args:
      output: NumPy arrays, without the axis of a batch.
      top: most objects.
      size: height and width of the image.

    Returns:
      `label`, a text, `score`, and `box`, its left, top, width and height in
      pixels, of each object.
    """
    raise NotImplementedError


# Name → the class, or where it is: its module may be slow to import.
_TASKS: dict[str, type[Task] | str] = {
  "classification": "halonet.tasks.classification:Classification",
  "detection": "halonet.tasks.detection:Detection",
}


def register(name: str, task: type[Task]) -> None:
  """Makes a task known by name.

  Raises:
    ValueError: if the name is taken by another task.
  """
  if _TASKS.get(name, task) is not task:
    raise ValueError(f"there is a task {name!r} already")
  _TASKS[name] = task


def get_task(name: str) -> type[Task]:
  """Looks a task up; raises UsageError with the known names."""
  if name not in _TASKS:
    raise UsageError(f"config.task: {unknown('task', str(name), _TASKS)}")
  task = _TASKS[name]
  if isinstance(task, str):
    module, _, attribute = task.partition(":")
    task = _TASKS[name] = getattr(importlib.import_module(module), attribute)
  return task


def make_task(
  config: "ml_collections.ConfigDict",
  metadata: Mapping[str, Any] | None = None,
) -> Task:
  """Makes the task of a config."""
  return get_task(config.task)(config, metadata)
