"""The training story, from a config to a result."""

import contextlib
import datetime
import time
import zlib
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import parameter_overview

from halonet.chips import find_chip
from halonet.compilation import keep_programs
from halonet.cost import model as model_cost
from halonet.data import pipeline, sources
from halonet.errors import RunError
from halonet.parallel import DATA, batch_sharding, make_mesh
from halonet.signals import Stopped, StopSignals
from halonet.tasks.task import make_task
from halonet.training import config as config_lib
from halonet.training import initialise, processes
from halonet.training import optimizer as optimizer_lib
from halonet.training.checkpoint import Checkpoints
from halonet.training.evaluation import evaluate, words
from halonet.training.memory import check_memory, check_step, peak_memory
from halonet.training.metrics import Progress, open_writer
from halonet.training.processes import say, together
from halonet.training.profiler import Profiler
from halonet.training.state import abstract_batch, abstract_state, make_init
from halonet.training.step import make_eval_step, make_train_step
from halonet.training.workdir import Workdir


def train(
  config: ml_collections.ConfigDict, workdir_path: str
) -> dict[str, Any]:
  """Trains to the end, from scratch or from where the workdir's run stopped.

  With several processes (see `halonet.training.processes`) all of them call
  this with the same arguments.

  Args:
    config: complete and checked, from `halonet.training.config.load_config`.
    workdir_path: a folder of this run's own, which all processes share; see
      `halonet.training.workdir`.

  Returns:
    What is written to `results.json`.

  Raises:
    UsageError: before any compilation, if config or workdir are impossible.
    RunError: if the run had to stop; it says where, why and how to go on.
  """
  # ---------------------------------------------------------------- workdir
  workdir = Workdir(workdir_path)
  with contextlib.ExitStack() as stack:
    changed = []
    with together():
      if processes.is_first():
        changed = stack.enter_context(workdir.claim(config))
    processes.check_shared(workdir.path)
    text = config_lib.to_json(config)
    processes.check_same(zlib.crc32(text.encode()), "config fields")
    results = workdir.results()
    if results:
      say(f"This run is finished: {results['steps']} steps.")
      return results
    with together():
      config_lib.check_devices(config, make_mesh().shape[DATA])
      initialise.check_source(config, workdir)

    # ----------------------------------------------------------------- data
    source, needs = None, make_task(config).needs
    with together():
      if processes.is_first():  # Prepares it, where that is still to be done.
        source = sources.open_source(config.data, needs)
    with together():
      source = source or sources.open_source(config.data, needs)
      train_split = source.split("train_split", config.data.train_split)
      test_split = source.split("test_split", config.data.test_split)
    for split in (train_split, test_split):
      processes.check_same(split.fingerprint, f"files in {source.location}")
    data = {
      "training files": f"{train_split.size}, {train_split.fingerprint:x}",
      "test files": f"{test_split.size}, {test_split.fingerprint:x}",
    }
    task = make_task(config, make_task(config).describe(source))
    workdir.check_metadata(task.metadata)
    workdir.check_data(data)
    say(keep_programs(workdir_path, config.compilation_cache))
    for change in changed:
      say(f"Changed since this run began: config.{change}")
    in_steps = config_lib.in_steps(config, train_split.size)
    agreed = processes.stop_requested if jax.process_count() > 1 else None
    with StopSignals(agreed=agreed) as stop:
      return _train(
        in_steps, task, workdir, source, data, train_split, test_split, stop
      )


def _train(config, task, workdir, source, data, train_split, test_split, stop):
  """Does the rest of `train`, with durations in steps.

  `task.config` is the config as it was given.
  """
  # ------------------------------------------------------------------- mesh
  mesh = make_mesh()
  device = mesh.devices.flat[0]
  say(
    f"Devices: {mesh.size} × {device.device_kind} ({device.platform}), of"
    f" {jax.process_count()} process{'es' * (jax.process_count() > 1)}\n"
    f"Data: {source.name} in {source.location}: {train_split.size} images to"
    f" train on, {test_split.size} to test on"
    + "".join(
      f", {len(names)} classes of {feature}"
      for feature, names in source.classes.items()
    )
  )

  # ------------------------------------------------------------------ model
  model = config_lib.create_model(config, task)
  optimizer = optimizer_lib.make_optimizer(config)
  schedule = optimizer_lib.make_schedule(config)
  train_step = make_train_step(model, task, optimizer, config, mesh)
  eval_step = make_eval_step(model, task, mesh)
  init = make_init(model, optimizer, config, mesh)
  abstract = abstract_state(init, mesh)
  with together():
    check_memory(abstract, abstract_batch(task, mesh))
  say(
    parameter_overview.get_parameter_overview(
      abstract.params, include_stats=False
    )
  )
  chip = find_chip(device)
  flops = (
    model_cost.forward_flops(model, config.data.image_size) if chip else None
  )

  # --------------------------------------------------------- state or restore
  checkpoints = Checkpoints(
    workdir.checkpoints, task.best, config.keep_checkpoints
  )
  with contextlib.closing(checkpoints):
    processes.check_same(checkpoints.latest or 0, "checkpoints")
    found = checkpoints.restore_latest(abstract)
    if found:
      step, state, batches_seen = found
      say(f"Going on from step {step}, from {workdir.checkpoints / str(step)}")
    elif config.init_from is None:
      step, state, batches_seen = 0, init(config.seed), 0
    else:
      step, batches_seen = 0, 0
      with together():
        state, notes = initialise.initial_state(
          config, model, lambda: init(config.seed), mesh
        )
      say("\n".join(notes))
    with together():
      if processes.is_first():
        # From here on the folder is this config's: nothing is wrong with it.
        workdir.write_config(task.config)
        workdir.write_metadata(task.metadata)
        workdir.write_data(data)

    # -------------------------------------------------------------- compile
    say("Compiling the training step")
    started = time.perf_counter()
    batch = abstract_batch(task, mesh)
    train_step = train_step.lower(abstract, batch).compile()
    with together():
      check_step(train_step)
    say(f"Compiled in {time.perf_counter() - started:.0f} s")
    if stop.signal:
      raise Stopped(stop.signal, f"nothing is lost since step {step}")

    # ----------------------------------------------------------------- loop
    say(
      f"Training to step {config.steps}: {config.batch_size} images a step,"
      f" {config.steps * config.batch_size / train_split.size:.1f} epochs,"
      " learning rate up to"
      f" {optimizer_lib.peak_learning_rate(config):g}"
    )
    group = config.model.get("batch_norm_group")
    part = config.batch_size // mesh.shape[DATA] // config.accumulation_steps
    if group and part % group:
      say(
        f"Every batch norm communicates: its groups of {group} images do not"
        f" fit into the {part} that a device computes at once"
      )
    batches = pipeline.on_device(
      pipeline.train_batches(train_split, task, start=batches_seen),
      batch_sharding(mesh),
    )
    progress = Progress(config.steps, config.batch_size)
    progress.restart(step)
    profiler = Profiler(config.profile_steps, str(workdir.tensorboard), step)
    recent = []  # (step, metrics on the devices) since the last line of log
    evaluation = None
    with together():
      writer = open_writer(workdir, step)
    with (
      contextlib.closing(writer),
      contextlib.closing(profiler),
    ):
      while step < config.steps:
        profiler.before(step + 1)
        if len(recent) > 1:
          # One step ahead of the devices: what is waited for below is input
          # that they wait for, too, and batches do not pile up there.
          jax.block_until_ready(recent[-2])
        with progress.waiting():
          batch = next(batches)
        state, metrics = train_step(state, batch)
        step += 1
        batches_seen += 1
        recent.append((step, metrics))
        profiler.after(step, state)

        # Read once for each decision: a signal may come at any moment.
        stopping = stop.after(step)
        last = step == config.steps
        log = last or step % config.log_every == 0
        # Who is told to stop has no time for an evaluation.
        test = last or (step % config.eval_every == 0 and not stopping)
        # What was evaluated is saved: it may be the most accurate.
        save = last or test or step % config.checkpoint_every == 0
        if not (log or test or save or stopping):
          continue

        means = _finite_means(recent, config, checkpoints)
        if log:
          skipped = round(means.pop("skipped", 0) * len(recent))
          recent = []
          rate, waiting, eta = progress.rate(step)
          figures = means | {
            "learning_rate": float(schedule(step - 1)),
            "images_per_second": rate,
            "images_per_second_per_device": rate / mesh.size,
            "input_wait": waiting,
          }
          shown = "".join(
            f"  {name} {value:.4f}"
            for name, value in {"loss": means["loss"], **means}.items()
            if name != "gradient_norm"
          )
          line = (
            f"step {step}/{config.steps}{shown}  {rate:.0f} images/s"
            f"  input wait {waiting:.0%}"
          )
          if chip and flops:
            # A step is usually counted as three forward passes. What is
            # computed a second time to save memory is no work of the model.
            figures["flops_utilization"] = (
              3 * flops * rate / (chip.peak_flops * mesh.size)
            )
            line += f"  MFU {figures['flops_utilization']:.1%}"
          if config.data.skip_corrupt:
            figures["skipped_images"] = skipped
            line += f"  skipped {skipped}"
          writer.write(step, **figures)
          say(f"{line}  ETA {datetime.timedelta(seconds=round(eta))}")
        if test:
          evaluation, averaged, _ = evaluate(
            eval_step, task, state, test_split, mesh
          )
          tested = _test_figures(evaluation, averaged)
          for name, value in tested.items():
            # Others may be undefined, such as a mean over no examples.
            selects = name.endswith(("test_loss", f"test_{task.best}"))
            if selects and not np.isfinite(value):
              raise NotFinite(
                name.replace("_", " "), value, step, config, checkpoints
              )
          writer.write(step, **tested)
          say(f"step {step}/{config.steps}  {words(task, evaluation)}")
          if averaged:
            say(
              f"step {step}/{config.steps}  moving averages:"
              f" {words(task, averaged)}"
            )
        if save or stopping:
          score = (averaged or evaluation)[task.best] if test else None
          checkpoints.save(step, state, batches_seen, score)
        if stopping and not last:
          checkpoints.wait()
          raise Stopped(stopping, f"saved {workdir.checkpoints / str(step)}")
        if save:
          progress.restart(step)
    checkpoints.wait()
    best = checkpoints.best

  # ----------------------------------------------------------------- result
  if evaluation is None:  # Stopped between the last save and the result.
    evaluation, averaged, _ = evaluate(eval_step, task, state, test_split, mesh)
  memory, whose = peak_memory()
  results = {
    **_test_figures(evaluation, averaged),
    "best": task.best,
    "steps": step,
    "best_checkpoint": best,
    "checkpoint": step,
    "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
    **_costs(model, config.data.image_size),
    "images_per_second": progress.images_per_second,
    # Since this process began: not of one before, from which it went on.
    "peak_memory_bytes": memory,
    "peak_memory_of": whose,
    "device": f"{mesh.size} × {device.device_kind}",
    "jax": jax.__version__,
  }
  with together():
    if processes.is_first():
      workdir.write_results(results)
  return results


def _costs(model, image_size):
  """Returns what an image costs, for reports; {} where that is unknown."""
  try:
    counts = model_cost.count(model, image_size)
  except Exception:  # A figure for information ends no run.
    return {}
  total = counts.total
  return {
    "flops": None if counts.unknown else total.flops,
    "attention_bytes": total.attention_bytes,
  }


def _test_figures(evaluation, averaged):
  """Names the figures of the weights that count: the moving averages, if there
  are any, and then the raw ones beside them."""
  figures = {
    f"test_{name}": value for name, value in (averaged or evaluation).items()
  }
  if averaged:
    figures |= {
      f"raw_test_{name}": value
      for name, value in evaluation.items()
      if name not in ("images", "skipped")
    }
  return figures


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
