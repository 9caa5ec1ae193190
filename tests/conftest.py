# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests; read before any of them imports jax."""

import os

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Their programs are large and run a few times: nearly all of their time is
# XLA's. With little effort it takes a third less.
_COMPILED_QUICKLY = (
  "layers",
  "networks",
  "candidates_test.py",
  "generate_test.py",
  "depthwise_lm_test.py",
  "depthwise_test.py",
  "soundstorm_test.py",
  "acoustic_backends_test.py",
  "masked_test.py",
)


@pytest.fixture(autouse=True, scope="module")
def compile_quickly(request):
  """Compiles with little effort where programs hardly run."""
  place = (request.path.parent.name, request.path.name)
  if not set(place) & set(_COMPILED_QUICKLY):
    yield
    return
  import jax

  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)
