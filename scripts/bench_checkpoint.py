"""Measures what checksums cost when a training's state is saved and restored.

  python scripts/bench_checkpoint.py [--model halonet_h7]

Draws a state with momentum, saves it, restores it, and writes and compares the
checksums of its files alone, in turns. It prints the least time of each, on the
clock and of the processor.
"""

import contextlib
import tempfile
import time

from halonet import command


def main() -> None:
  parser = command.parser(__doc__)
  parser.add_argument(
    "--model", default="halonet_h7", help="name of a model (%(default)s)"
  )
  parser.add_argument(
    "--rounds",
    type=command.positive(int),
    default=5,
    help="saves and restores (%(default)s)",
  )
  parser.add_argument(
    "--folder", help="where to save (the folder of temporary files)"
  )
  arguments = parser.parse_args()

  import jax
  import optax
  from etils import epath

  from halonet import create_model
  from halonet.training import checksums
  from halonet.training.checkpoint import Checkpoints
  from halonet.training.state import TrainState

  model = create_model(arguments.model)
  # The weights do not depend on the size of the image.
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)
  key = jax.random.key(0)
  variables = jax.tree.map(lambda x: jax.random.normal(key, x.shape), shapes)
  params = variables.pop("params")
  state = TrainState(
    step=jax.numpy.zeros((), "int32"),
    params=params,
    collections=variables,
    opt_state=optax.trace(0.9).init(params),
  )
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  size = sum(x.nbytes for x in jax.tree.leaves(state))
  print(f"{arguments.model}: {size / 2**20:.0f} MiB", flush=True)

  times = {}

  @contextlib.contextmanager
  def measured(name):
    clock, processor = time.perf_counter(), time.process_time()
    yield
    now = time.perf_counter() - clock, time.process_time() - processor
    least = times.get(name, now)
    times[name] = tuple(map(min, least, now))

  with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
    checkpoints = Checkpoints(epath.Path(folder), "accuracy", 1)
    with contextlib.closing(checkpoints):
      for step in command.progress(range(1, arguments.rounds + 1), "rounds"):
        saved = epath.Path(folder) / str(step)
        with measured("save"):
          checkpoints.save(step, state, step)
          checkpoints.wait()
        with measured("restore"):
          jax.block_until_ready(checkpoints.restore(step, abstract)[0])
        with measured("compare"):
          checksums.compare(saved)
        with measured("write"):
          checksums.write(saved)

  rows = []
  for whole, part in (("save", "write"), ("restore", "compare")):
    for kind, total, own in zip(
      ("clock", "processor"), times[whole], times[part], strict=True
    ):
      cost = own / (total - own)
      rows.append(
        (whole, kind, f"{total:.2f}", f"{own:.3f}", f"{100 * cost:.1f} %")
      )
  print(command.table(("", "", "s", "of checksums, s", "cost"), rows, left=2))


if __name__ == "__main__":
  command.use_huge_pages()
  command.run(main)
