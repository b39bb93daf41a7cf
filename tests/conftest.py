"""What all tests share: eight devices, checked shapes, seeds, real data."""

import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jaxtyping

jaxtyping.install_import_hook("halonet", "beartype.beartype")

import hypothesis
import pytest

hypothesis.settings.register_profile("local", max_examples=200, deadline=None)
hypothesis.settings.register_profile(
  "ci", max_examples=50, deadline=None, derandomize=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture
def unchecked_shapes():
  """Lets a wrong shape through to the message that a user would get."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)
