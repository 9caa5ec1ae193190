# SPDX-License-Identifier: Apache-2.0
"""Planted faults at seams are found; the same faults elsewhere are not."""

import numpy as np
import pytest

from musiclm_jax.evaluation import bootstrap, seams

RATE_HZ = 8000
SECS = 30.0
# Not where the notes begin.
SEAMS = tuple(np.arange(2.1, 29.0, 1.7))


def tune(seed):
  """Decaying notes every 0.37 s over a little noise."""
  generator = np.random.default_rng(seed)
  time = np.arange(round(SECS * RATE_HZ)) / RATE_HZ
  out = 0.003 * generator.normal(size=len(time))
  for start in np.arange(0.0, SECS, 0.37):
    since = time - start
    note = np.sin(2 * np.pi * generator.uniform(200, 800) * since)
    out += 0.2 * note * np.exp(-4 * np.maximum(since, 0)) * (since >= 0)
  return out.astype(np.float32)


def with_clicks(waveform, times):
  out = waveform.copy()
  for secs in times:
    out[round(secs * RATE_HZ)] += 0.9
  return out


def test_seams_of_unbroken_audio_are_like_the_rest():
  figures = seams.compare([tune(0), tune(1)], RATE_HZ, [SEAMS, SEAMS])
  assert set(figures) == {"spectral_flux", "level_change_db"}
  for figure in figures.values():
    assert figure.is_equal, figure
    assert figure.outliers == ()


def test_planted_clicks_are_found_where_they_are():
  planted = SEAMS[3:9:2]
  figures = seams.compare(
    [with_clicks(tune(0), planted), tune(1)], RATE_HZ, [SEAMS, SEAMS]
  )
  flux = figures["spectral_flux"]
  assert flux.outliers == tuple((0, secs) for secs in planted)
  assert flux.to_dict()["outliers"] == [[0, secs] for secs in planted]
  everywhere = seams.compare([with_clicks(tune(0), SEAMS)], RATE_HZ, [SEAMS])[
    "spectral_flux"
  ]
  assert everywhere.difference.low > 0 and not everywhere.is_equal


def test_clicks_elsewhere_are_not_the_seams():
  elsewhere = [with_clicks(tune(0), np.asarray(SEAMS[::2]) + 0.8)]
  figures = seams.compare(elsewhere, RATE_HZ, [SEAMS])
  assert figures["spectral_flux"].is_equal
  assert not figures["spectral_flux"].outliers


def test_a_step_of_level_is_found():
  waveform = tune(0)
  gains = np.ones(len(waveform), np.float32)
  for index, secs in enumerate(SEAMS):
    gains[round(secs * RATE_HZ) :] = 0.05 if index % 2 == 0 else 1.0
  figure = seams.compare([waveform * gains], RATE_HZ, [SEAMS])
  assert figure["level_change_db"].difference.low > 5.0


def test_text_score_drops_at_seams_if_it_does():
  """The score of a piece is how little noise there is around its middle."""
  waveform = tune(0)
  for secs in SEAMS:
    place = slice(
      round((secs - 0.05) * RATE_HZ), round((secs + 0.05) * RATE_HZ)
    )
    waveform[place] = 0.0

  def score(pieces):
    middle = pieces.shape[1] // 2
    part = pieces[:, middle - 200 : middle + 200]
    return np.sqrt((part**2).mean(1))

  config = seams.SeamConfig(score_secs=0.5)
  found = seams.compare([waveform], RATE_HZ, [SEAMS], [score], config)[
    "text_score"
  ]
  assert found.difference.high < 0
  whole = seams.compare([tune(0)], RATE_HZ, [SEAMS], [score], config)
  assert whole["text_score"].is_equal


def test_bad_calls_are_refused():
  with pytest.raises(ValueError, match="2 rows of seams"):
    seams.compare([tune(0)], RATE_HZ, [SEAMS, SEAMS])
  with pytest.raises(ValueError, match="0 seams"):
    seams.compare([tune(0)], RATE_HZ, [()])
  with pytest.raises(ValueError, match="outlier_quantile=1"):
    seams.SeamConfig(outlier_quantile=1.0)


def test_difference_of_unpaired_means():
  generator = np.random.default_rng(0)
  first, second = generator.normal(1.0, 1.0, 400), generator.normal(size=300)
  interval = bootstrap.difference(first, second)
  assert interval.mean == pytest.approx(first.mean() - second.mean())
  # 1.96 standard errors on each side.
  assert interval.high - interval.low == pytest.approx(0.30, abs=0.04)
  assert interval.low < 1.0 < interval.high
  with pytest.raises(ValueError, match="expected"):
    bootstrap.difference(first, np.zeros(0))
