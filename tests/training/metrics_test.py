# SPDX-License-Identifier: Apache-2.0
"""Metrics reach their files."""

import json

import numpy as np

from musiclm_jax.training import metrics


def test_tensorboard_is_optional_and_lines_are_not(tmp_path):
  writer = metrics.MetricsWriter(tmp_path, 0, tensorboard=False)
  for step in (10, 20):
    writer.scalars(step, "train", {"loss": 1.0 / step})
  writer.media(20, {"sound": (np.zeros((1, 8), np.float32), 8)})
  writer.close()
  assert not (tmp_path / "tensorboard").exists()
  # A run that goes on from step 10 writes 20 again.
  metrics.MetricsWriter(tmp_path, 10, tensorboard=False).close()
  lines = (tmp_path / metrics.FILE_NAME).read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [10]
