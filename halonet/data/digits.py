"""The embedded data set: scikit-learn's handwritten digits, for TFDS.

1,797 grey images of 8×8 pixels in ten classes, which ship inside scikit-learn
(the test set of the UCI "Optical Recognition of Handwritten Digits"). Importing
this module makes `tfds.builder("digits")` known; once prepared, the data set
is ordinary TFDS records, read by the path that ImageNet takes.
"""

import numpy as np
import tensorflow_datasets as tfds

_TEST_FRACTION = 0.25
_SPLIT_SEED = 0


class Digits(tfds.core.GeneratorBasedBuilder):
  """Splits `train` (1,347 images) and `test` (450), alike in their classes."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description="Handwritten digits of 8×8 pixels, from scikit-learn.",
      homepage="https://archive.ics.uci.edu/dataset/80",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
          "label": tfds.features.ClassLabel(num_classes=10),
        }
      ),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    del dl_manager  # Nothing is downloaded.
    import sklearn.datasets
    import sklearn.model_selection

    digits = sklearn.datasets.load_digits()
    train, test = sklearn.model_selection.train_test_split(
      np.arange(len(digits.target)),
      test_size=_TEST_FRACTION,
      random_state=_SPLIT_SEED,
      stratify=digits.target,
    )
    # Sixteen steps of grey become 0 … 255.
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return {
      name: self._generate_examples(images, digits.target, np.sort(rows))
      for name, rows in (("train", train), ("test", test))
    }

  def _generate_examples(self, images, labels, rows):
    for row in rows.tolist():
      yield row, {"image": images[row], "label": int(labels[row])}
