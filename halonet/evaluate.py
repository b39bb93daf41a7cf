"""Evaluates a checkpoint on the whole test split: exact, each image once."""

import argparse

from halonet import command


def main() -> None:
  parser = argparse.ArgumentParser(
    prog="python -m halonet.evaluate", description=__doc__, allow_abbrev=False
  )
  parser.add_argument(
    "--workdir", required=True, metavar="DIR", help="folder of a run"
  )
  parser.add_argument(
    "--step", type=int, help="which checkpoint (the latest by default)"
  )
  arguments = parser.parse_args()

  from halonet.data import pipeline
  from halonet.training.config import check_devices
  from halonet.training.evaluation import evaluate
  from halonet.training.restore import restore_model
  from halonet.training.state import make_mesh
  from halonet.training.step import make_eval_step

  mesh = make_mesh()
  run = restore_model(arguments.workdir, mesh, arguments.step)
  check_devices(run.config, mesh.size)
  data = run.config.data
  builder = pipeline.prepare(data.name, data.data_dir)
  print(
    f"Evaluating step {run.step} on split {data.test_split} of"
    f" {builder.info.full_name}",
    flush=True,
  )
  result = evaluate(
    make_eval_step(run.model, mesh),
    run.state,
    builder,
    run.config,
    mesh,
  )
  print(result)


if __name__ == "__main__":
  command.run(main)
