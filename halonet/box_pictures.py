"""Draws what a detector found into images, beside a JSON of it."""

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from halonet.errors import UsageError

# Okabe and Ito's, which people who see colours differently tell apart.
_COLORS = (
  *("#e69f00", "#56b4e9", "#009e73", "#f0e442"),
  *("#0072b2", "#d55e00", "#cc79a7"),
)
# Pillow's own font has ASCII alone; this has Latin, Greek and Cyrillic letters.
_FONT = pathlib.Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")

Found = list[dict[str, Any]]


def write(
  images: Iterable[tuple[str, Image.Image, Found]],
  labels: Sequence[str],
  folder: str,
) -> None:
  """Writes `NUMBER_NAME.png` for each image, and `predictions.json`.

  Args:
    images: path, pixels, and what `Task.find` returned for each.
    labels: names of all classes, whose order decides the colours.
    folder: new folder.

  Raises:
    UsageError: if it cannot be written.
  """
  target = pathlib.Path(folder)
  records = []
  colors = {label: _COLORS[i % 7] for i, label in enumerate(labels)}
  try:
    target.mkdir()
    for number, (path, image, found) in enumerate(images, start=1):
      name = f"{number}_{pathlib.Path(path).stem}.png"
      draw(image, found, colors).save(target / name)
      records.append({"image": path, "picture": name, "objects": found})
    text = json.dumps(records, indent=1) + "\n"
    (target / "predictions.json").write_text(text, errors="backslashreplace")
  except OSError as error:
    raise UsageError(f"--output {folder} cannot be written: {error}") from None


def draw(
  image: Image.Image, found: Found, colors: dict[str, str]
) -> Image.Image:
  """Returns a copy of an image with boxes, classes and scores.

  Args:
    image: RGB.
    found: objects, best first; the best are drawn last, above the others.
    colors: of the classes.
  """
  image = image.copy()
  pen = ImageDraw.Draw(image)
  line = max(1, round(max(image.size) / 400))
  font = ImageFont.truetype(_FONT, max(10, round(max(image.size) / 50)))
  for each in reversed(found):
    left, top, width, height = each["box"]
    color = colors[each["label"]]
    box = left, top, left + max(width, 0), top + max(height, 0)
    pen.rectangle(box, outline=color, width=line)
    text = f"{each['label']} {each['score']:.2f}"
    room = image.width - pen.textlength(text, font=font)
    left = max(0, min(left, room))
    area = pen.textbbox((left, top), text, font=font, anchor="lb")
    if area[1] < 0:  # No room above the box.
      area = pen.textbbox((left, top), text, font=font, anchor="lt")
    pen.rectangle(area, fill=color)
    pen.text(area[:2], text, fill="black", font=font, anchor="lt")
  return image
