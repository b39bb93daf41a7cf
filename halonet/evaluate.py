"""Evaluates a checkpoint on the whole test split: exact, each image once."""

from halonet import command, distributed


def main() -> None:
  parser = command.parser(__doc__, prog="python -m halonet.evaluate")
  parser.add_argument(
    "--workdir", required=True, metavar="DIR", help="folder of a run"
  )
  parser.add_argument(
    "--step", type=int, help="which checkpoint (the latest by default)"
  )
  distributed.add_arguments(parser)
  arguments = parser.parse_args()

  with command.importing():
    from halonet.compilation import keep_programs
    from halonet.data import sources
    from halonet.parallel import DATA, make_mesh
    from halonet.training.config import check_devices
    from halonet.training.evaluation import evaluate, words
    from halonet.training.processes import check_same, is_first, say, together
    from halonet.training.restore import restore_model
    from halonet.training.step import make_eval_step
    from halonet.training.workdir import Workdir

  distributed.initialize(arguments)
  mesh = make_mesh()
  run = restore_model(arguments.workdir, mesh, arguments.step)
  keep_programs(arguments.workdir, run.config.compilation_cache)
  data = run.config.data
  workdir = Workdir(arguments.workdir)
  with together():
    check_devices(run.config, mesh.shape[DATA])
    source = sources.open_source(data, run.task.needs)
    workdir.check_metadata(run.task.describe(source))
    split = source.split("test_split", data.test_split)
  check_same(split.fingerprint, f"files in {source.location}")
  say(
    f"Evaluating step {run.step} on split {data.test_split} of {source.name}:"
    f" {split.size} images"
  )
  figures, averaged, records = evaluate(
    make_eval_step(run.model, run.task, mesh), run.task, run.state, split, mesh
  )
  say(words(run.task, figures))
  if averaged:
    say(f"moving averages: {words(run.task, averaged)}")
  if records is not None and is_first():
    for name, content in (
      ("detections", records),
      ("figures", averaged or figures),
    ):
      path = workdir.path / f"{name}_{run.step}.json"
      command.write_json(path, content)


if __name__ == "__main__":
  command.use_huge_pages()
  command.run(main)
