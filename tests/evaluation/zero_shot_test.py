# SPDX-License-Identifier: Apache-2.0
"""Tags as texts."""

import numpy as np
import pytest

from musiclm_jax.evaluation import zero_shot


def test_a_tag_is_the_mean_of_its_prompts_at_unit_length():
  known = {"flute": [1, 0], "a flute": [0, 1], "tuba": [0, 1], "a tuba": [0, 1]}
  found = zero_shot.tag_embeddings(
    lambda texts: np.array([known[text] for text in texts]),
    ["flute", "tuba"],
    ["{}", "a {}"],
  )
  half = np.sqrt(0.5)
  np.testing.assert_allclose(found, [[half, half], [0, 1]], atol=1e-6)


def test_templates_by_kind():
  assert zero_shot.templates_for("tempo") == zero_shot.TEMPLATES["tempo"]
  assert zero_shot.templates_for("mood") == zero_shot.OTHER_TEMPLATES
  assert zero_shot.templates_for("tempo", {"tempo": ["so {}"]}) == ("so {}",)
  for bad in ("no place", "{} and {}"):
    with pytest.raises(ValueError, match="'mood'"):
      zero_shot.templates_for("mood", {"mood": [bad]})
