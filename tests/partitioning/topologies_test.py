# SPDX-License-Identifier: Apache-2.0
"""Names of slices and shapes become topologies, wrong ones errors."""

import pytest

from musiclm_jax.core import errors
from musiclm_jax.partitioning import topologies


@pytest.mark.parametrize(
  "text, num_slices, shape, num_devices",
  [
    ("v5p:4x4x8", 1, (4, 4, 8), 128),
    # v4 and v5p count cores, two on a chip; v5e and v6e count chips.
    ("v5p-128", 1, (4, 4, 4), 64),
    ("v4-32", 1, (2, 2, 4), 16),
    ("v5e-256", 4, (16, 16), 1024),
    ("v5litepod-16", 1, (4, 4), 16),
    ("v6e-8", 1, (2, 4), 8),
  ],
)
def test_parses_shapes_and_names(text, num_slices, shape, num_devices):
  topology = topologies.parse(text, num_slices)
  assert topology.shape == shape
  assert topology.num_devices == num_devices


@pytest.mark.parametrize(
  "text, message",
  [
    ("v5p", "CHIP:SHAPE"),
    ("v9:2x2", "no chip 'v9'"),
    ("v5e:4x4x4", "2 dimensions"),
    ("v5e:32x32", "at most 256"),
    ("v5p-100", "expected a slice of"),
  ],
)
def test_refuses_what_is_no_slice(text, message):
  with pytest.raises(errors.UserError, match=message):
    topologies.parse(text)


def test_names_the_extra_where_the_compiler_is_missing(monkeypatch):
  monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(errors.UserError, match=r"musiclm_jax\[check\]"):
    topologies.prepare_environment()
