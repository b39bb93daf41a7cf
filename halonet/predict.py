"""Applies a trained model to image files, and shows where it looks."""

import pathlib

from halonet import command
from halonet.errors import UsageError


def main() -> None:
  parser = command.parser(__doc__, prog="python -m halonet.predict")
  which = parser.add_mutually_exclusive_group(required=True)
  which.add_argument("--workdir", metavar="DIR", help="folder of a run")
  which.add_argument(
    "--model", metavar="NAME", help="a published model, such as halonet50ts"
  )
  parser.add_argument(
    "--weights",
    metavar="SOURCE",
    help="a safetensors file or hf-hub:OWNER/NAME, for --model (timm's own)",
  )
  parser.add_argument(
    "--step", type=int, help="checkpoint of --workdir (the latest)"
  )
  parser.add_argument(
    "--top",
    type=int,
    help="most answers per image (5; of a detector 100)",
  )
  parser.add_argument(
    "--score",
    type=float,
    help="least score of what a detector finds (0.3)",
  )
  parser.add_argument(
    "--attention",
    metavar="FILE.png",
    help="draws where the last blocked attention layer looks, of one image",
  )
  parser.add_argument(
    "--pixel",
    metavar="X,Y",
    help="pixel of the image whose attention is drawn (its centre)",
  )
  parser.add_argument(
    "--output",
    metavar="DIR",
    help="new folder for pictures of what a detector finds, and a JSON",
  )
  parser.add_argument("images", nargs="+", metavar="IMAGE")
  arguments = parser.parse_args()
  if arguments.top is not None and arguments.top < 1:
    raise UsageError(f"--top is {arguments.top}; it must be at least 1")
  if arguments.weights is not None and arguments.model is None:
    raise UsageError("--weights is for --model=NAME")
  if arguments.step is not None and arguments.workdir is None:
    raise UsageError("--step is for --workdir=DIR")
  if arguments.pixel is not None and not arguments.attention:
    raise UsageError("--pixel is for the picture of --attention=FILE.png")
  if arguments.output and pathlib.Path(arguments.output).exists():
    raise UsageError(f"--output: {arguments.output} exists; name a new folder")
  if arguments.output:
    parent = pathlib.Path(arguments.output).absolute().parent
    if not parent.is_dir():
      raise UsageError(f"--output: there is no folder {parent}")
  if arguments.attention:
    picture = pathlib.Path(arguments.attention)
    if len(arguments.images) > 1:
      raise UsageError("--attention draws one image; name one")
    if picture.suffix != ".png":
      raise UsageError(f"--attention {picture} must be a .png file")
    if picture.exists():
      raise UsageError(f"--attention: {picture} exists; name another file")
    if not picture.parent.is_dir():
      raise UsageError(f"--attention: there is no folder {picture.parent}")

  with command.importing():
    from halonet import inference
    from halonet.data.images import read_image

  for path in arguments.images:  # Errors come before any work.
    image = read_image(path)
  if arguments.model is not None:
    predictor = inference.of_published(arguments.model, arguments.weights)
  else:
    predictor = inference.of_run(arguments.workdir, arguments.step)
  if arguments.output and not predictor.task.finds:
    raise UsageError("--output is for detectors; there is nothing to draw")
  if arguments.attention and predictor.task.finds:
    raise UsageError("--attention draws classifiers alone")
  if arguments.score is not None and not predictor.task.finds:
    raise UsageError("--score is for detectors; --top limits the answers")
  if arguments.attention:
    from halonet import pictures

    pixel = pictures.parse_pixel(arguments.pixel, image, predictor)
  top = arguments.top or (100 if predictor.task.finds else 5)
  score = 0.3 if arguments.score is None else arguments.score

  def predictions():
    for path in arguments.images:
      image = read_image(path)
      # A name may be no UTF-8.
      print(path.encode(errors="backslashreplace").decode())
      answers, found = predictor.predict(image, top, score)
      for answer in answers:
        print(f"  {answer}")
      yield path, image, found

  if arguments.output:
    from halonet import box_pictures

    labels = predictor.task.metadata["labels"]
    box_pictures.write(predictions(), labels, arguments.output)
    command.wrote(arguments.output)
  else:
    for _ in predictions():
      pass
  if arguments.attention:
    pictures.draw_attention(predictor, image, pixel, arguments.attention)
    command.wrote(arguments.attention)


if __name__ == "__main__":
  command.use_huge_pages()
  command.run(main)
