# SPDX-License-Identifier: Apache-2.0
"""The depth-wise network: stable names, what sees what, chunks."""

import acoustic_models as small
import jax
import numpy as np
import pytest

from musiclm_jax.core import artifacts

# Checkpoints and artefacts depend on these names and shapes; vocabulary
# 2 + 2 * 4 + 6 + 3 * 5.
GOLDEN = {
  "token_embed/table": (31, 16),
  "transformer/final_norm/scale": (16,),
  "transformer/layers/attention/out/kernel": (1, 2, 8, 16),
  "transformer/layers/attention/qkv/kernel": (1, 16, 3, 2, 8),
  "transformer/layers/attention_norm/scale": (1, 16),
  "transformer/layers/mlp/wi/kernel": (1, 16, 16),
  "transformer/layers/mlp/wo/kernel": (1, 16, 16),
  "transformer/layers/mlp_norm/scale": (1, 16),
  "transformer/relative_bias/table": (8, 2),
  "depth/code_embed/table": (10, 16),
  "depth/context/kernel": (16, 16),
  "depth/level_embed": (3, 16),
  "depth/output": (3, 16, 5),
  "depth/stack/final_norm/scale": (16,),
  "depth/stack/layers/attention/out/kernel": (1, 2, 8, 16),
  "depth/stack/layers/attention/qkv/kernel": (1, 16, 3, 2, 8),
  "depth/stack/layers/attention_norm/scale": (1, 16),
  "depth/stack/layers/mlp/wi/kernel": (1, 16, 16),
  "depth/stack/layers/mlp/wo/kernel": (1, 16, 16),
  "depth/stack/layers/mlp_norm/scale": (1, 16),
}


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "frames"])
def scored(request):
  """A model and a function from codes by stream to logits."""
  model = small.depthwise_model(prefix_conditioning=request.param)
  params = small.params_of(model, scale=1.0)

  @jax.jit
  def logits(tokens, codes):
    return model.network.apply(
      {"params": params}, tokens, model.layout.shapes, codes
    )

  def score(codes):
    return np.asarray(logits(model.layout.encode(codes), codes["acoustic"]))

  return model, score


def test_parameter_names_and_shapes_are_stable():
  flat = artifacts.flatten(small.params_of(small.depthwise_model()))
  assert {name: leaf.shape for name, leaf in flat.items()} == GOLDEN


def test_a_code_sees_what_comes_before_it_and_nothing_else(scored):
  _, score = scored
  codes = small.codes(1)
  before = score(codes)
  for frame, level in ((0, 0), (3, 1), (7, 2)):
    changed = {**codes, "acoustic": codes["acoustic"].copy()}
    changed["acoustic"][0, frame, level] += 1
    changed["acoustic"] %= 5
    moved = np.abs(score(changed) - before).max((0, 3)) > 0
    expected = np.zeros((8, 3), bool)
    expected[frame, level + 1 :] = True
    expected[frame + 1 :] = True
    np.testing.assert_array_equal(moved, expected)


def test_conditioning_reaches_its_frames(scored):
  model, score = scored
  codes = small.codes(1)
  before = score(codes)
  mulan = {**codes, "mulan": (codes["mulan"] + 1) % 4}
  assert (np.abs(score(mulan) - before).max((0, 2, 3)) > 0).all()
  semantic = {**codes, "semantic": codes["semantic"].copy()}
  # The semantic frame 2 goes with the acoustic frames 4 and 5.
  semantic["semantic"][0, 2] = (semantic["semantic"][0, 2] + 1) % 6
  moved = np.abs(score(semantic) - before).max((0, 2, 3)) > 0
  first = 0 if model.config.prefix_conditioning else 4
  np.testing.assert_array_equal(moved, np.arange(8) >= first)
