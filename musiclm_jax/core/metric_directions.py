# SPDX-License-Identifier: Apache-2.0
"""Which way a metric gets better: names in, 'min', 'max' or None out."""

import fnmatch

MIN, MAX = "min", "max"

# The first pattern that fits decides. What says nothing about quality by
# itself (a temperature, a share of the data) is not here on purpose.
_DIRECTIONS = (
  ("loss", MIN),
  ("*_loss", MIN),
  ("loss_minus_*", MIN),
  ("loss_over_chance", MIN),
  ("cross_entropy*", MIN),
  ("reconstruction", MIN),
  ("waveform", MIN),
  ("commitment", MIN),
  ("log_mel_distance*", MIN),
  ("distance_positive", MIN),
  ("active", MIN),
  ("median_rank*", MIN),
  ("hub_share_*", MIN),
  ("distance_negative", MAX),
  ("accuracy", MAX),
  ("*_accuracy", MAX),
  ("recall_at_*", MAX),
  # That of the noisy input itself is a fact of the data.
  ("noisy_si_snr_db", None),
  ("*si_snr_db", MAX),
  ("codebook_usage*", MAX),
  ("*perplexity*", MAX),
  ("embedding_rank_*", MAX),
  ("embedding_spread_*", MAX),
  ("spread", MAX),
  ("feature_spread", MAX),
)


def direction_of(metric: str) -> str | None:
  """Whether a metric of a trainable is best when small or when large.

  Args:
    metric: its name without the split, 'cross_entropy' or
      'codebook_usage/00'.

  Returns:
    'min', 'max', or None where neither can be said.
  """
  for pattern, direction in _DIRECTIONS:
    if fnmatch.fnmatchcase(metric, pattern):
      return direction
  return None
