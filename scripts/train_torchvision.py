"""Trains torchvision's RetinaNet as a run of ours was, and compares the two.

  pip install torch torchvision
  python scripts/train_torchvision.py --workdir=runs/detect [--json=FILE]

Network, first weights, batches, number of steps, optimizer and schedule are
those of the run in the workdir, such as one of configs/detection/small.py; it
need not be finished. Loss, matcher, box coder, rounding and place of anchors,
and what is made of the outputs are torchvision's. Our evaluator judges both.

Ours has a batch norm after every level of the pyramid, and in the heads one for
every level. torchvision has none by default. --norms chooses what it gets:

  level  ours, where it takes a `norm_layer` and further levels: it is the same
         network, and all weights have their place.
  group  group norms in the heads, as in its `retinanet_resnet50_fpn_v2`.
  none   none.

Before training, levels and outputs of both networks are compared on images of
the first batch, with random weights and with the first ones; of norms without a
counterpart, ours get such as change nothing. Figures are largest differences
over the largest value (allowed: 1e-5).

PyTorch's threads wait for one another in every operation: on a machine that has
other work, OMP_NUM_THREADS=1 may be several times as fast.
"""

import datetime
import sys

import jax
import numpy as np

from halonet import command
from halonet.errors import RunError, UsageError

FIGURES = "box_ap", "box_ap50", "box_ap75"
# Other values have no counterpart here.
FIELDS = {
  "task": "detection",
  "optimizer.name": "adamw",
  "accumulation_steps": 1,
  "ema_decay": 0,
  "data.skip_corrupt": False,
  "model.dtype": "float32",
  "model.fpn_operator": "conv",
  "model.head_operator": "conv",
  "model.batch_norm_group": 0,
  "model.batch_norm_momentum": 0.9,
}


def main() -> None:
  parser = command.parser(__doc__)
  parser.add_argument(
    "--workdir", required=True, metavar="DIR", help="folder of a run of ours"
  )
  parser.add_argument(
    "--learning_rate",
    type=command.positive(float),
    metavar="RATE",
    help="config.optimizer.learning_rate, in place of the run's",
  )
  parser.add_argument(
    "--norms",
    choices=("level", "group", "none"),
    default="level",
    help="of torchvision's pyramid and heads (default: level)",
  )
  command.add_output(parser, "--json")
  arguments = parser.parse_args()
  try:
    import torch
    import torchvision
  except ImportError as error:
    sys.exit(f"error: {error}; pip install torch torchvision")
  import torchvision_retinanet as theirs

  from halonet.data import pipeline
  from halonet.training.workdir import Workdir

  workdir = Workdir(arguments.workdir)
  config, task, model, variables, splits = open_run(workdir)
  if arguments.learning_rate:
    config.optimizer.learning_rate = arguments.learning_rate
  torch.manual_seed(config.seed)
  print(f"torchvision {torchvision.__version__}, PyTorch {torch.__version__}")
  network = theirs.make_network(model, arguments.norms)
  images = next(pipeline.train_batches(splits[0], task))["image"][:2]
  theirs.compare(model, variables, network, images, arguments.norms != "group")
  seconds, figures = train(network, config, task, splits)

  rows = {"torchvision": figures}
  if results := workdir.results():
    ours = {name: results[f"test_{name}"] for name in figures}
    rows = {"ours": ours} | rows
  cells = ([row, *(f"{x[k]:.4f}" for k in FIGURES)] for row, x in rows.items())
  print(command.table(("", *FIGURES), cells))
  command.write_json(
    arguments.json,
    {
      **rows,
      "steps": config.steps,
      "learning_rate": config.optimizer.learning_rate,
      "norms": arguments.norms,
      "seconds_per_step": seconds,
      "versions": {
        "torchvision": torchvision.__version__,
        "torch": torch.__version__,
      },
    },
  )


def open_run(workdir):
  """Returns config in steps, task, model, first variables and both splits."""
  from halonet.data import sources
  from halonet.parallel import make_mesh
  from halonet.tasks.task import make_task
  from halonet.training import config as config_lib
  from halonet.training.initialise import initial_state
  from halonet.training.optimizer import make_optimizer
  from halonet.training.state import make_init

  config = workdir.config()
  given = config_lib.flatten(config)
  for field, value in FIELDS.items():
    if given.get(field) != value:
      raise UsageError(
        f"config.{field} of {workdir.path} is {given.get(field)!r}; here it"
        f" must be {value!r}"
      )
  task = make_task(config, workdir.metadata())
  source = sources.open_source(config.data, task.needs)
  splits = [
    source.split(field, config.data[field])
    for field in ("train_split", "test_split")
  ]
  workdir.check_data(
    {
      f"{kind} files": f"{split.size}, {split.fingerprint:x}"
      for kind, split in zip(("training", "test"), splits, strict=True)
    }
  )
  config = config_lib.in_steps(config, splits[0].size)
  model, mesh = config_lib.create_model(config, task), make_mesh()
  state = make_init(model, make_optimizer(config), config, mesh)(config.seed)
  if config.init_from is not None:
    state, _ = initial_state(config, model, lambda: state, mesh)
  return config, task, model, jax.device_get(state.variables), splits


def train(network, config, task, splits):
  """Returns the seconds of a step, and the figures of the trained network."""
  import torch
  from torchvision_retinanet import losses_of

  from halonet.data import pipeline
  from halonet.training.metrics import Progress
  from halonet.training.optimizer import make_schedule

  parts = {True: [], False: []}
  for parameter in network.parameters():
    parts[parameter.ndim > 1].append(parameter)  # Kernels decay.
  decay = config.optimizer.weight_decay
  optimizer = torch.optim.AdamW(
    [{"params": parts[key], "weight_decay": key * decay} for key in parts]
  )
  schedule = make_schedule(config)
  batches = pipeline.train_batches(splits[0], task)
  progress = Progress(config.steps, config.batch_size)
  progress.restart(0)
  losses = []
  for step in range(1, config.steps + 1):
    with progress.waiting():
      batch = next(batches)
    for group in optimizer.param_groups:
      group["lr"] = float(schedule(step - 1))
    found = losses_of(network, batch)
    loss = sum(found.values())
    optimizer.zero_grad()
    loss.backward()
    if config.optimizer.clip_norm:
      torch.nn.utils.clip_grad_norm_(
        network.parameters(), config.optimizer.clip_norm
      )
    optimizer.step()
    losses.append({k: x.item() for k, x in {"loss": loss, **found}.items()})
    if not np.isfinite(losses[-1]["loss"]):
      raise RunError(f"the loss is {losses[-1]['loss']} at step {step}")
    last = step == config.steps
    if last or step % config.log_every == 0:
      rate, _, eta = progress.rate(step)
      shown = "".join(
        f"  {name} {np.mean([x[name] for x in losses]):.4f}"
        for name in losses[0]
      )
      eta = datetime.timedelta(seconds=round(eta))
      print(
        f"step {step}/{config.steps}{shown}  {rate:.1f} images/s  ETA {eta}",
        flush=True,
      )
      losses = []
    if last or step % config.eval_every == 0:
      figures = evaluate(network, task, splits[1])
      print(f"step {step}/{config.steps}  {task.words(figures)}", flush=True)
      progress.restart(step)
  return config.batch_size / progress.images_per_second, figures


def evaluate(network, task, split):
  """Returns COCO's figures of the test split."""
  from torchvision_retinanet import detect

  from halonet.data import pipeline

  evaluator, images = task.evaluator(), 0
  for batch in pipeline.test_batches(split, task):
    found = detect(network, batch)
    found["boxes"] *= batch["to_source"][:, None]
    finite = np.isfinite(found["boxes"]).all(axis=(1, 2))
    evaluator.add({"objects": batch, "detections": found, "finite": finite})
    images += int(batch["weight"].sum())
  return evaluator.figures(images) | {"images": images}


if __name__ == "__main__":
  command.use_huge_pages()
  command.run(main)
