"""Classifies image files with a trained model, and shows where it looks."""

import argparse
import pathlib

from halonet import command
from halonet.errors import UsageError


def main() -> None:
  parser = argparse.ArgumentParser(
    prog="python -m halonet.predict", description=__doc__, allow_abbrev=False
  )
  parser.add_argument(
    "--workdir", required=True, metavar="DIR", help="folder of a run"
  )
  parser.add_argument(
    "--step", type=int, help="which checkpoint (the latest by default)"
  )
  parser.add_argument(
    "--top", type=int, default=5, help="classes per image (%(default)s)"
  )
  parser.add_argument(
    "--attention",
    metavar="FILE.png",
    help="draws where the last attention layer looks, of one image",
  )
  parser.add_argument(
    "--pixel",
    metavar="X,Y",
    help="pixel of the image whose attention is drawn (its centre)",
  )
  parser.add_argument("images", nargs="+", metavar="IMAGE")
  arguments = parser.parse_args()
  if arguments.top < 1:
    raise UsageError(f"--top is {arguments.top}; it must be at least 1")
  if arguments.pixel and not arguments.attention:
    raise UsageError("--pixel is for the picture of --attention=FILE.png")
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

  from halonet.data.images import model_input, read_image
  from halonet.prediction import draw_attention, parse_pixel, predict
  from halonet.training.restore import restore_model

  images = [read_image(path) for path in arguments.images]
  pixel = parse_pixel(arguments.pixel, images[0])
  run = restore_model(arguments.workdir, arguments.step)
  for path, image in zip(arguments.images, images, strict=True):
    probabilities = predict(run, model_input(image, run.config.data))
    print(path)
    for index in probabilities.argsort()[::-1][: arguments.top]:
      print(f"  {probabilities[index]:7.2%}  {run.labels[index]}")
  if arguments.attention:
    draw_attention(run, images[0], pixel, arguments.attention)
    print(f"Wrote {arguments.attention}")


if __name__ == "__main__":
  command.run(main)
