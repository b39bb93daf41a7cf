"""TensorFlow as this package uses it: on the host, to read and decode.

Modules import `tf` from here, so that these settings come first.
"""

import contextlib
import os

# TensorFlow imports Keras, and so SciPy, scikit-learn and Matplotlib, which
# takes half of its time; unless it is told to use an older Keras, which is not
# installed. `tf.keras` is found all the same once the variable is gone.
_OLD_KERAS = "TF_USE_LEGACY_KERAS"
_chosen = _OLD_KERAS in os.environ
os.environ.setdefault(_OLD_KERAS, "1")
import tensorflow as tf  # noqa: E402

if not _chosen:
  del os.environ[_OLD_KERAS]

# Once TensorFlow has been used, its settings can no longer be changed.
with contextlib.suppress(RuntimeError):
  # JAX owns the accelerators.
  tf.config.set_visible_devices([], "GPU")
  # Each thread makes one image. Threads within an operation would only compete
  # with these and cost a tenth of the time.
  tf.config.threading.set_intra_op_parallelism_threads(1)

# Images made at once. The number that tf.data chooses makes 5 % fewer.
CORES = os.cpu_count()
if hasattr(os, "sched_getaffinity"):  # Not on macOS.
  CORES = len(os.sched_getaffinity(0))
