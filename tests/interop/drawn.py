"""Weights, images and labels that follow from their names alone.

The comparison with timm and the test without it both draw them here, so only
timm's answers need to be stored.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from halonet.interop import timm as interop

# Model, height and width of the image, our fields, timm's options. A model's
# first size is its own. Tables of global attention are made for one size.
CASES = (
  ("halonet_h1_timm", (256, 256), {}, {}),
  ("halonet_h1_timm", (256, 512), {}, {}),
  ("halonet26t", (256, 256), {}, {}),
  ("halonet26t", (256, 512), {}, {}),
  ("sehalonet33ts", (256, 256), {}, {}),
  ("sehalonet33ts", (512, 256), {}, {}),
  ("halonet50ts", (256, 256), {}, {}),
  ("halonet50ts", (256, 512), {}, {}),
  ("eca_halonext26ts", (256, 256), {}, {}),
  ("eca_halonext26ts", (256, 512), {}, {}),
  ("halo2botnet50ts_256", (256, 256), {}, {}),
  ("halo2botnet50ts_256", (512, 512), {"global_size": 16}, {"img_size": 512}),
  ("lamhalobotnet50ts_256", (256, 256), {}, {}),
  ("lamhalobotnet50ts_256", (512, 512), {"global_size": 16}, {"img_size": 512}),
  ("haloregnetz_b", (224, 224), {}, {}),
  ("haloregnetz_b", (448, 224), {}, {}),
  ("swin_tiny_patch4_window7_224", (224, 224), {}, {}),
  (
    "swin_tiny_patch4_window7_224",
    (128, 256),
    {"window_size": 4},
    {"img_size": (128, 256), "window_size": 4},
  ),
  ("pvt_v2_b0", (224, 224), {}, {}),
  ("pvt_v2_b1", (225, 250), {}, {}),
  ("resnet50", (224, 224), {}, {}),
  ("resnet50", (97, 131), {}, {}),
)
# Larger models of the same kind; scripts/parity_timm.py alone compares them.
LARGE_CASES = (
  ("swin_small_patch4_window7_224", (224, 224), {}, {}),
  ("swin_small_patch4_window7_224", (448, 224), {}, {"img_size": (448, 224)}),
  ("swin_base_patch4_window7_224", (224, 224), {}, {}),
  ("pvt_v2_b1", (224, 224), {}, {}),
  ("pvt_v2_b2", (224, 224), {}, {}),
  ("pvt_v2_b2", (256, 384), {}, {}),
  ("pvt_v2_b3", (224, 224), {}, {}),
  ("pvt_v2_b4", (224, 224), {}, {}),
  ("pvt_v2_b5", (224, 224), {}, {}),
  ("resnet101", (224, 224), {}, {}),
  ("resnet101", (97, 131), {}, {}),
  ("resnet152", (97, 131), {}, {}),
)
GRADIENT_CASES = (
  ("halonet26t", (256, 256), {}, {}),
  ("halonet_h1_timm", (256, 256), {}, {}),
  (
    "swin_tiny_patch4_window7_224",
    (64, 128),
    {"window_size": 2},
    {"img_size": (64, 128), "window_size": 2, "drop_path_rate": 0.0},
  ),
  ("pvt_v2_b0", (64, 128), {}, {}),
  (
    "resnet50",
    (64, 128),
    {"depths": (1, 1, 1, 1)},
    {"layers": (1, 1, 1, 1)},
  ),
)
# Models of which timm's `features_only` has the four stages; see `sample`.
FEATURE_CASES = (
  ("resnet50", (97, 131)),
  ("resnet101", (97, 131)),
)


def draw_state_dict(shapes: dict[str, tuple]) -> dict[str, np.ndarray]:
  """Draws a state dict of timm's, statistics of batch norms included."""
  return {name: _draw(name, shape) for name, shape in shapes.items()}


def _draw(name, shape):
  rng = _rng(name)
  if name.endswith("num_batches_tracked"):
    return np.zeros((), np.int64)
  if name.endswith(("running_var",)) or (
    name.endswith("weight") and len(shape) == 1
  ):
    array = rng.uniform(0.5, 1.5, shape)
  elif name.endswith(("bias", "running_mean")):
    array = 0.1 * rng.normal(size=shape)
  elif name.endswith("_rel"):
    array = shape[1] ** -0.5 * rng.normal(size=shape)
  else:
    array = np.prod(shape[1:]) ** -0.5 * rng.normal(size=shape)
  return array.astype(np.float32)


def draw_images(number: int, size: tuple[int, int]):
  images = _rng(f"images {size}").normal(size=(number, *size, 3))
  return jnp.asarray(images, jnp.float32)


def draw_labels(number: int) -> np.ndarray:
  return _rng("labels").integers(1000, size=number)


def loss_and_gradients(model, state_dict, images, labels):
  """Mean cross-entropy in training mode, and gradients by timm's names.

  In float64; the model must be, too.
  """
  with jax.enable_x64(True):
    variables = jax.tree.map(
      lambda x: jnp.asarray(x, jnp.float64),
      interop.from_timm(state_dict, model),
    )

    def loss_of(params):
      logits, _ = model.apply(
        variables | {"params": params},
        jnp.asarray(images, jnp.float64),
        train=True,
        mutable="batch_stats",
      )
      log = jax.nn.log_softmax(logits)
      return -log[jnp.arange(len(labels)), labels].mean()

    loss, gradients = jax.jit(jax.value_and_grad(loss_of))(variables["params"])
    loss = float(loss)
    gradients = jax.tree.map(np.asarray, gradients)
  statistics = {k: v for k, v in variables.items() if k != "params"}
  gradients = {"params": gradients} | jax.tree.map(np.asarray, statistics)
  return loss, interop.to_timm(gradients, model)


def project(gradients: dict[str, np.ndarray]) -> np.ndarray:
  """One number per parameter: its gradient along a drawn direction."""
  return np.array(
    [
      (_rng(f"direction {name}").normal(size=x.shape) * x).sum()
      for name, x in sorted(gradients.items())
    ]
  )


def sample(features) -> np.ndarray:
  """Every 64th channel of all pixels of all stages of the first image."""
  return np.concatenate([x[0, :, :, ::64].ravel() for x in features])


def _rng(name):
  return np.random.default_rng(zlib.crc32(name.encode()))


def key(name: str, size: tuple[int, int], what: str) -> str:
  """The name of an answer in the file that stores them."""
  return f"{name} {size[0]}x{size[1]} {what}"
