# SPDX-License-Identifier: Apache-2.0
"""Decode programs of back ends are traced; nothing is compiled."""

import acoustic_models as small
import jax
import jax.numpy as jnp
import pytest

from musiclm_jax.cli import check_serving
from musiclm_jax.training import model_flops


@pytest.mark.parametrize("kind", ["depthwise", "soundstorm"])
def test_a_window_is_a_program_of_its_own(kind):
  model = getattr(small, f"{kind}_model")()
  served = check_serving.decode_program(model, rows=2)
  codes = jax.eval_shape(served.function, *served.arguments)
  assert codes.shape == (2, 8, 3) and codes.dtype == jnp.int32
  assert served.audio_secs == 1.0
  assert served.parameters == sum(
    leaf.size for leaf in jax.tree.leaves(small.params_of(model))
  )
  assert model_flops.trace_flops(served.function, *served.arguments) > 0
