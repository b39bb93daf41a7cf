"""Classifies image files with a trained model, and shows where it looks."""

import argparse
import pathlib

from halonet import command
from halonet.errors import UsageError


def main() -> None:
  parser = argparse.ArgumentParser(
    prog="python -m halonet.predict", description=__doc__, allow_abbrev=False
  )
  which = parser.add_mutually_exclusive_group(required=True)
  which.add_argument("--workdir", metavar="DIR", help="folder of a run")
  which.add_argument(
    "--model", metavar="NAME", help="a published model, such as halonet50ts"
  )
  parser.add_argument(
    "--weights",
    metavar="SOURCE",
    help="of --model: a safetensors file, or hf-hub:OWNER/NAME (timm's own)",
  )
  parser.add_argument(
    "--step",
    type=int,
    help="of --workdir: which checkpoint (the latest)",
  )
  parser.add_argument(
    "--top", type=int, default=5, help="classes per image (%(default)s)"
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
  parser.add_argument("images", nargs="+", metavar="IMAGE")
  arguments = parser.parse_args()
  if arguments.top < 1:
    raise UsageError(f"--top is {arguments.top}; it must be at least 1")
  if arguments.weights is not None and arguments.model is None:
    raise UsageError("--weights is for --model=NAME")
  if arguments.step is not None and arguments.workdir is None:
    raise UsageError("--step is for --workdir=DIR")
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

  from halonet import prediction
  from halonet.data.images import read_image

  images = [read_image(path) for path in arguments.images]
  if arguments.model is not None:
    classifier = prediction.of_published(arguments.model, arguments.weights)
  else:
    classifier = prediction.of_run(arguments.workdir, arguments.step)
  pixel = prediction.parse_pixel(arguments.pixel, images[0], classifier)
  for path, image in zip(arguments.images, images, strict=True):
    probabilities = classifier.predict(image)
    print(path)
    for index in probabilities.argsort()[::-1][: arguments.top]:
      print(f"  {probabilities[index]:7.2%}  {classifier.labels[index]}")
  if arguments.attention:
    prediction.draw_attention(classifier, images[0], pixel, arguments.attention)
    print(f"Wrote {arguments.attention}")


if __name__ == "__main__":
  command.use_huge_pages()
  command.run(main)
