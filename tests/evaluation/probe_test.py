# SPDX-License-Identifier: Apache-2.0
"""Linear probes on codes whose content is known."""

import numpy as np
import pytest

from musiclm_jax.evaluation import probe


def test_bags_count_codes_level_by_level():
  codes = np.array([[0, 2], [0, 1], [1, 1], [0, 1]])
  bag = probe.bag_of_codes(codes, 3)
  np.testing.assert_allclose(bag**2, [0.75, 0.25, 0, 0, 0.75, 0.25])
  with pytest.raises(ValueError, match="frames"):
    probe.bag_of_codes(codes[:0], 3)


def test_repeats_find_a_period():
  codes = np.tile([[0], [1], [2], [3]], (6, 1))
  np.testing.assert_array_equal(probe.repeats(codes, 5), [0, 0, 0, 1, 0])


def test_ridge_is_the_same_in_both_spaces():
  """Fewer rows than columns and the reverse take different ways."""
  generator = np.random.default_rng(0)
  rows = generator.normal(size=(30, 8))
  labels = generator.integers(0, 3, 30)
  other = generator.normal(size=(50, 8))
  few = probe.predict(rows, labels, [other], 0.1)[0]
  wide = np.zeros((30, 40))
  wide[:, :8] = rows
  many = probe.predict(wide, labels, [np.pad(other, ((0, 0), (0, 32)))], 0.1)[0]
  np.testing.assert_array_equal(few, many)


def _split(works, seed):
  """Clips whose semantic codes tell the label, whose acoustic ones do not."""
  generator = np.random.default_rng(seed)
  labels = generator.integers(0, 4, 8 * len(works))
  told = np.where(generator.random(len(labels)) < 0.9, labels, 0)
  return probe.Examples(
    {
      "semantic": np.stack(
        [probe.bag_of_codes(np.full((5, 1), code), 4) for code in told]
      ),
      "acoustic": np.stack(
        [
          probe.bag_of_codes(generator.integers(0, 4, (5, 2)), 4)
          for _ in labels
        ]
      ),
    },
    labels,
    [work for work in works for _ in range(8)],
  )


def test_probe_finds_who_leads():
  parts = _split("abcdefgh", 0), _split("ijk", 1), _split("lmnopq", 2)
  result = probe.probe(*parts)
  found = {k: v["accuracy"] for k, v in result["features"].items()}
  assert found["semantic"]["mean"] > 0.8
  assert found["acoustic"]["mean"] < 0.5
  assert found["semantic"]["low"] < found["semantic"]["mean"]
  assert result["num_test_works"] == 6 and result["num_classes"] == 4
  assert probe.leader(result) == "semantic"
  swapped = {
    "differences": {"semantic - acoustic": {"low": -0.3, "high": -0.1}}
  }
  assert probe.leader(swapped) == "acoustic"
  swapped["differences"]["semantic - acoustic"]["high"] = 0.1
  assert probe.leader(swapped) == "neither"
  lines = probe.table({"chord": result}).splitlines()
  assert len(lines) == 3 and lines[2].startswith("| chord (4) |")
  assert lines[2].endswith("| semantic | semantic |")
  assert len({line.count("|") for line in lines}) == 1


def test_works_in_training_and_test_are_refused():
  with pytest.raises(ValueError, match="shares works.*such as a"):
    probe.probe(_split("ab", 0), _split("c", 1), _split("ad", 2))
