# SPDX-License-Identifier: Apache-2.0
"""SoundStorm's network: stable names, masked codes are not seen."""

import acoustic_models as small
import jax
import numpy as np
import pytest

from musiclm_jax.core import artifacts

# Checkpoints and artefacts depend on these names and shapes; vocabulary
# 2 + 2 * 4 + 6 + 3 * 5. Those of the Conformer are held by w2v_bert_test.py.
GOLDEN = {
  "token_embed/table": (31, 16),
  "mask_embed": (3, 16),
  "output": (3, 16, 5),
}


@pytest.fixture(scope="module")
def score():
  model = small.soundstorm_model()
  params = small.params_of(model)

  @jax.jit
  def logits(tokens, masked, levels, is_real):
    return model.network.apply(
      {"params": params}, tokens, model.layout.shapes, masked, levels, is_real
    )

  def call(codes, masked, levels, is_real=None):
    if is_real is None:
      is_real = np.ones(masked.shape[:2], bool)
    return np.asarray(
      logits(model.layout.encode(codes), masked, np.array(levels), is_real)
    )

  return call


def test_parameter_names_and_shapes_are_stable():
  flat = artifacts.flatten(small.params_of(small.soundstorm_model()))
  found = {
    name: leaf.shape for name, leaf in flat.items() if "conformer" not in name
  }
  assert found == GOLDEN


def test_only_known_codes_have_influence_and_on_all_frames(score):
  codes = small.codes(2)
  masked = np.zeros((2, 8, 3), bool)
  masked[:, 3:, 1], masked[:, :, 2] = True, True
  before = score(codes, masked, [1, 1])
  changed = {**codes, "acoustic": (codes["acoustic"] + masked) % 5}
  np.testing.assert_array_equal(score(changed, masked, [1, 1]), before)
  for frame, level in ((2, 1), (7, 0)):
    changed = {**codes, "acoustic": codes["acoustic"].copy()}
    changed["acoustic"][:, frame, level] += 1
    changed["acoustic"] %= 5
    moved = np.abs(score(changed, masked, [1, 1]) - before).max((0, 2))
    assert (moved > 1e-6).all()  # Earlier frames too: both directions.


def test_rows_have_levels_of_their_own(score):
  codes = small.codes(2)
  masked = np.ones((2, 8, 3), bool)
  both = score(codes, masked, [0, 2])
  np.testing.assert_allclose(
    both[0], score(codes, masked, [0, 0])[0], atol=1e-5
  )
  np.testing.assert_allclose(
    both[1], score(codes, masked, [2, 2])[1], atol=1e-5
  )
  assert np.abs(both[1] - score(codes, masked, [0, 0])[1]).max() > 1e-3


def test_padding_does_not_leak(score):
  codes = small.codes(2)
  masked = np.ones((2, 8, 3), bool)
  masked[..., 0] = False
  is_real = np.ones((2, 8), bool)
  is_real[:, 5:] = False
  before = score(codes, masked, [1, 1], is_real)
  changed = {**codes, "acoustic": codes["acoustic"].copy()}
  changed["acoustic"][:, 5:] = (changed["acoustic"][:, 5:] + 1) % 5
  after = score(changed, masked, [1, 1], is_real)
  np.testing.assert_allclose(after[:, :5], before[:, :5], atol=1e-5)
