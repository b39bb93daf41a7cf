"""The training story, from a config to a result."""

import contextlib
import datetime
import signal
import threading
import time
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import parameter_overview

from halonet.data import pipeline
from halonet.errors import RunError
from halonet.training import config as config_lib
from halonet.training import optimizer as optimizer_lib
from halonet.training.checkpoint import Checkpoints
from halonet.training.evaluation import evaluate
from halonet.training.metrics import MetricWriter, Progress
from halonet.training.state import (
  abstract_batch,
  abstract_state,
  batch_sharding,
  make_init,
  make_mesh,
)
from halonet.training.step import make_eval_step, make_train_step
from halonet.training.workdir import Workdir


def train(
  config: ml_collections.ConfigDict, workdir_path: str
) -> dict[str, Any]:
  """Trains to the end, from scratch or from where the workdir's run stopped.

  Args:
    config: complete and checked, from `halonet.training.config.load_config`.
    workdir_path: a folder of this run's own; see `halonet.training.workdir`.

  Returns:
    What is written to `results.json`.

  Raises:
    UsageError: before any compilation, if config or workdir are impossible.
    RunError: if the run had to stop; it says where, why and how to go on.
  """
  # ---------------------------------------------------------------- workdir
  workdir = Workdir(workdir_path)
  with workdir.claim(config):
    results = workdir.results()
    if results:
      _say(f"This run is finished: {config.steps} steps.")
      return results
    config_lib.check_devices(config, jax.device_count())

    # ----------------------------------------------------------------- data
    builder = pipeline.prepare(config.data.name, config.data.data_dir)
    train_size = pipeline.split_size(
      builder, "train_split", config.data.train_split
    )
    test_size = pipeline.split_size(
      builder, "test_split", config.data.test_split
    )
    labels = builder.info.features["label"].names
    workdir.write_config(config)
    workdir.write_labels(labels)
    with StopSignals() as stop:
      return _train(config, workdir, builder, train_size, test_size, stop)


def _train(config, workdir, builder, train_size, test_size, stop):
  """The rest of `train`, with data and workdir at hand."""
  # ------------------------------------------------------------------- mesh
  mesh = make_mesh()
  device = mesh.devices.flat[0]
  labels = builder.info.features["label"].names
  _say(
    f"Devices: {mesh.size} × {device.device_kind} ({device.platform})\n"
    f"Data: {builder.info.full_name} in {builder.data_dir}: {train_size}"
    f" images to train on, {test_size} to test on, {len(labels)} classes"
  )

  # ------------------------------------------------------------------ model
  model = config_lib.create_model(config, num_classes=len(labels))
  optimizer = optimizer_lib.make_optimizer(config)
  schedule = optimizer_lib.make_schedule(config)
  train_step = make_train_step(
    model, optimizer, config.label_smoothing, config.seed, mesh
  )
  eval_step = make_eval_step(model, mesh)
  init = make_init(model, optimizer, config.data.image_size, mesh)
  abstract = abstract_state(init, mesh)
  _say(
    parameter_overview.get_parameter_overview(
      abstract.params, include_stats=False
    )
  )

  # --------------------------------------------------------- state or restore
  checkpoints = Checkpoints(workdir.checkpoints, config.keep_checkpoints)
  with contextlib.closing(checkpoints):
    step = checkpoints.latest or 0
    if step:
      state, batches_seen = checkpoints.restore(step, abstract)
      _say(f"Going on from step {step}, from {workdir.checkpoints / str(step)}")
    else:
      state, batches_seen = init(jax.random.key(config.seed)), 0

    # -------------------------------------------------------------- compile
    _say("Compiling the training step")
    started = time.perf_counter()
    batch = abstract_batch(config.batch_size, config.data.image_size, mesh)
    train_step = train_step.lower(abstract, batch).compile()
    _say(f"Compiled in {time.perf_counter() - started:.0f} s")
    if stop.signal:
      raise Stopped(stop.signal, f"nothing is lost since step {step}")

    # ----------------------------------------------------------------- loop
    _say(
      f"Training to step {config.steps}: {config.batch_size} images a step,"
      f" {config.steps * config.batch_size / train_size:.1f} epochs"
    )
    batches = pipeline.on_device(
      pipeline.train_batches(builder, config, start=batches_seen),
      batch_sharding(mesh),
    )
    progress = Progress(config.steps, config.batch_size)
    progress.restart(step)
    recent = []  # (step, metrics on the devices) since the last line of log
    evaluation = None
    with contextlib.closing(MetricWriter(workdir, step)) as writer:
      while step < config.steps:
        state, metrics = train_step(state, next(batches))
        step += 1
        batches_seen += 1
        recent.append((step, metrics))

        # Read once for each decision: a signal may come at any moment.
        stopping = stop.signal
        last = step == config.steps
        log = last or step % config.log_every == 0
        # Who is told to stop has no time for an evaluation.
        test = last or (step % config.eval_every == 0 and not stopping)
        save = last or step % config.checkpoint_every == 0
        if not (log or test or save or stopping):
          continue

        means = _finite_means(recent, config, checkpoints)
        if log:
          recent = []
          rate, eta = progress.rate(step)
          writer.write(
            step,
            **means,
            learning_rate=float(schedule(step - 1)),
            images_per_second=rate,
          )
          _say(
            f"step {step}/{config.steps}  loss {means['loss']:.4f}"
            f"  accuracy {means['accuracy']:.4f}  {rate:.0f} images/s"
            f"  ETA {datetime.timedelta(seconds=round(eta))}"
          )
        if test:
          evaluation = evaluate(eval_step, state, builder, config, mesh)
          if not np.isfinite(evaluation.loss):
            raise NotFinite(
              "test loss", evaluation.loss, step, config, checkpoints
            )
          writer.write(
            step,
            test_accuracy=evaluation.accuracy,
            test_loss=evaluation.loss,
            test_images=evaluation.images,
          )
          _say(f"step {step}/{config.steps}  {evaluation}")
          stopping = stop.signal
        if save or stopping:
          accuracy = evaluation.accuracy if test else None
          checkpoints.save(step, state, batches_seen, accuracy)
        if stopping and not last:
          checkpoints.wait()
          raise Stopped(stopping, f"saved {workdir.checkpoints / str(step)}")
        if test or save:
          progress.restart(step)
    checkpoints.wait()
    best = checkpoints.best

  # ----------------------------------------------------------------- result
  if evaluation is None:  # Stopped between the last save and the result.
    evaluation = evaluate(eval_step, state, builder, config, mesh)
  results = {
    "test_accuracy": evaluation.accuracy,
    "test_correct": evaluation.correct,
    "test_images": evaluation.images,
    "test_loss": evaluation.loss,
    "steps": step,
    "best_checkpoint": best,
    "checkpoint": step,
    "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
    "images_per_second": progress.images_per_second,
    "device": f"{mesh.size} × {device.device_kind}",
    "jax": jax.__version__,
  }
  workdir.write_results(results)
  return results


class Stopped(RunError):
  """A signal ended the run; nothing is lost."""

  def __init__(self, number: int, saved: str):
    super().__init__(
      f"{signal.Signals(number).name}: {saved}; the same command goes on from"
      " there"
    )
    self.exit_code = 128 + number


class NotFinite(RunError):
  """A figure of the training is NaN or infinite; it was not saved."""

  def __init__(self, name, value, step, config, checkpoints):
    latest = checkpoints.latest
    good = checkpoints.directory / str(latest) if latest else "none"
    super().__init__(
      f"{name} is {value} at step {step}; the last good checkpoint is {good}."
      " Lower config.optimizer.learning_rate (it is"
      f" {config.optimizer.learning_rate}) or raise"
      f" config.optimizer.warmup_steps ({config.optimizer.warmup_steps}), and"
      " train in a new --workdir"
    )


class StopSignals:
  """While open, notes the first SIGTERM or SIGINT in `signal`, an int.

  A second one acts as it would have without.
  """

  def __enter__(self) -> "StopSignals":
    self.signal = 0
    self._before = {}
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number, frame):
    del frame
    self.signal = number
    self.__exit__()
    _say(f"{signal.Signals(number).name}: leaving as soon as all is saved")


def _finite_means(recent, config, checkpoints):
  """Means of the metrics of recent steps; RunError if one is not finite."""
  recent = jax.device_get(recent)
  for step, metrics in recent:
    for name in ("loss", "gradient_norm"):
      if not np.isfinite(metrics[name]):
        raise NotFinite(name, metrics[name], step, config, checkpoints)
  return {
    name: float(np.mean([metrics[name] for _, metrics in recent]))
    for name in recent[0][1]
  }


def _say(line):
  print(line, flush=True)
