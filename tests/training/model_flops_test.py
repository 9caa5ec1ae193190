# SPDX-License-Identifier: Apache-2.0
"""FLOPs: formulas against what is traced, and against hand counts."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from musiclm_jax.core import stages, streams
from musiclm_jax.layers import transformer
from musiclm_jax.models import token_lm
from musiclm_jax.training import model_flops


def _stage(num_layers=1, **changes):
  config = transformer.TransformerConfig(
    num_layers, embed_dim=32, num_heads=2, mlp_dim=48, **changes
  )
  return token_lm.TokenLM(
    token_lm.TokenLMConfig(
      stages.coarse_stage(crop_secs=0.4), streams.published(), config
    )
  )


def test_counts_products_convolutions_and_loops():
  def function(x, kernel, matrix):
    y = jax.lax.conv_general_dilated(x, kernel, (2,), "VALID")
    z, _ = jax.lax.scan(lambda c, _: (c @ matrix, None), y[0], None, length=5)
    return jax.checkpoint(lambda a: a @ a.T)(z)

  counted = model_flops.trace_flops(
    function,
    jax.ShapeDtypeStruct((1, 3, 11), jnp.float32),
    jax.ShapeDtypeStruct((4, 3, 3), jnp.float32),
    jax.ShapeDtypeStruct((5, 5), jnp.float32),
  )
  # 4 x 5 outputs of 9 products; five (4, 5) x (5, 5); (4, 5) x (5, 4).
  assert counted == 2 * (20 * 9 + 5 * 4 * 5 * 5 + 4 * 4 * 5)


@pytest.mark.parametrize(
  "changes", [{}, {"gated": True}, {"head_dim": 24}, {"num_kv_heads": 1}]
)
def test_formula_of_a_layer_is_what_a_layer_computes(changes):
  """The difference of two unrolled depths is one layer."""
  one, two = (
    _stage(depth, scan_layers=False, dropout_rate=0.0, **changes)
    for depth in (1, 2)
  )
  traced = [model_flops.traced_train_flops(stage, 3) for stage in (one, two)]
  formula = [model_flops.stage_flops(stage, 3) for stage in (one, two)]
  length = one.layout.length
  config = one.config.transformer
  # The program also computes the half of the scores that is masked out.
  masked = 3 * 3 * 4 * config.num_heads * config.kv_dim
  masked *= length**2 - length * (length + 1) // 2
  assert traced[1] - traced[0] == formula[1] - formula[0] + masked
  assert traced[0] == formula[0] + masked


def test_recomputation_does_not_count():
  plain, again = (_stage(2, remat=remat) for remat in ("none", "full"))
  assert model_flops.traced_train_flops(
    plain, 2
  ) == model_flops.traced_train_flops(again, 2)
  gated = dataclasses.replace(plain.config.transformer, gated=True)
  assert model_flops.train_flops(
    _stage(2, gated=True), 2
  ) > model_flops.train_flops(plain, 2)
  assert gated.gated
