# SPDX-License-Identifier: Apache-2.0
"""Metrics rise with known faults, and say which they tell apart.

The embedding here is made of log-mel levels and how they move, so that the
test needs no trained network; docs/metrics.md has the same with MuLan.
"""

import math

import numpy as np
import pytest
import tunes

from musiclm_jax.audio import faults
from musiclm_jax.evaluation import (
  bootstrap,
  fault_response,
  frechet_distance,
  kernel_distance,
  log_mel,
)

RATE_HZ = 8000
SECS = 3.0
NUM_CLIPS = 40
_MELS = log_mel.LogMelConfig(RATE_HZ, 0.064, 0.016, num_mels=12)
# Slighter and stronger than those for real music, whose band is wider.
LEVELS = {
  "noise": (30.0, 20.0, 10.0, -math.inf),
  "low-pass": (1600.0, 800.0, 400.0),
  "slower": (1.5, 2.5),
  "shuffled": (0.3, 0.03),
}
WORKS = [f"work {index // 2}" for index in range(NUM_CLIPS)]


def heard(waveforms):
  """Mean levels by band, their spread, and how much they rise per frame."""
  vectors = []
  for waveform in waveforms:
    mels = log_mel.log_mel(waveform, _MELS)
    rise = np.maximum(np.diff(mels, axis=0), 0)
    vectors.append(np.concatenate([mels.mean(0), mels.std(0), rise.mean(0)]))
  vectors = np.array(vectors, np.float32)
  # As logits, the mean levels.
  return fault_response.Heard(
    vectors[:, None], vectors[:, None, : _MELS.num_mels], WORKS
  )


def tunes_of(first):
  return [tunes.tune(first + seed, SECS, RATE_HZ) for seed in range(NUM_CLIPS)]


@pytest.fixture(scope="module")
def answer():
  """Rows of all faults, and the sets they are of."""
  reference, clips = heard(tunes_of(0)), tunes_of(1000)
  versions = [
    fault_response.Version(fault_response.CLEAN, "clean", heard(clips))
  ]
  for kind, levels in LEVELS.items():
    for level in levels:
      changed = [
        faults.apply(kind, level, clip, RATE_HZ, np.random.default_rng(place))
        for place, clip in enumerate(clips)
      ]
      name = faults.label(kind, level)
      versions.append(fault_response.Version(kind, name, heard(changed)))
  return reference, versions, fault_response.respond(reference, versions)


def test_distances_rise_with_the_fault(answer):
  _, _, rows = answer
  for kind in LEVELS:
    path = [rows[0], *(row for row in rows if row.kind == kind)]
    for metric in ("fad", "fad_diagonal", "kad", "kld"):
      values = [row.values[metric].mean for row in path]
      assert (np.diff(values) > 0).all(), (kind, metric, values)
    lines = [row.fad_infinity[0] for row in path]
    assert (np.diff(lines) > 0).all(), (kind, lines)
  verdicts = fault_response.verdicts(rows)
  assert len(verdicts) == len(LEVELS) * 4
  assert all(verdict.is_ordered for verdict in verdicts)
  # Even slight noise is told, as the same clips are compared.
  told = {(v.kind, v.metric): v.slightest for v in verdicts}
  assert told["noise", "fad"] == "noise 30 dB below"


def test_values_are_those_of_the_metrics(answer):
  reference, versions, rows = answer
  for version, row in zip(versions, rows):
    sets = [np.concatenate(one.vectors) for one in (reference, version.heard)]
    expected = frechet_distance.frechet_distance(*sets)
    assert row.values["fad"].mean == pytest.approx(expected)
    expected = kernel_distance.estimate(*sets).value
    assert row.values["kad"].mean == pytest.approx(expected)
  assert not rows[0].differences
  assert rows[0].values["kld"].mean == pytest.approx(0, abs=1e-4)
  for row in rows[1:]:
    for metric, one in row.differences.items():
      apart = row.values[metric].mean - rows[0].values[metric].mean
      assert one.mean == pytest.approx(apart)


def test_a_slight_difference_is_surer_than_the_numbers(answer):
  slight = {row.name: row for row in answer[2]}["pieces of 0.3 s shuffled"]
  for metric in ("fad", "kad"):
    ends = slight.values[metric], slight.differences[metric]
    widths = [one.high - one.low for one in ends]
    assert widths[1] < widths[0] / 3, metric


def test_works_of_one_block_are_left_out_together(answer):
  _, versions, _ = answer
  clean = versions[0].heard
  few = fault_response.Heard(clean.vectors, [], ["one"] * NUM_CLIPS)
  version = fault_response.Version(fault_response.CLEAN, "clean", few)
  row = fault_response.respond(few, [version])[0]
  # One work alone says nothing of others.
  assert math.isnan(row.values["fad"].low)
  assert set(row.values) == {"fad", "fad_diagonal", "kad"}


def test_text_score_falls_where_audio_moves_away(answer):
  _, versions, _ = answer
  text = np.concatenate(versions[0].heard.vectors)
  rows = fault_response.respond(versions[0].heard, versions[:5], text)
  scores = [row.values["text_score"].mean for row in rows]
  assert scores[0] == pytest.approx(1) and (np.diff(scores) < 0).all()
  verdicts = {v.metric: v for v in fault_response.verdicts(rows)}
  assert verdicts["text_score"].is_ordered
  assert verdicts["text_score"].slightest is not None


def row(kind, name, value, low, high):
  return fault_response.Row(
    kind,
    name,
    {"fad": bootstrap.Interval(value, value, value)},
    {"fad": bootstrap.Interval(value, low, high)} if kind != "as it is" else {},
    None,
  )


@pytest.mark.parametrize(
  "steps, is_ordered, slightest",
  [
    ([(1, 0.5, 1.5), (2, 1, 3)], True, "1"),
    ([(1, -0.5, 1.5), (2, 1, 3)], True, "2"),
    # What is told, but less of it is not, is not told for sure.
    ([(3, 1, 4), (2, -1, 5)], False, None),
    ([(-2, -3, -1), (2, 1, 3)], False, "2"),
    ([(1, math.nan, math.nan), (2, math.nan, math.nan)], True, None),
  ],
)
def test_verdicts(steps, is_ordered, slightest):
  rows = [row("as it is", "0", 0, 0, 0)]
  rows += [
    row("noise", str(place), *step) for place, step in enumerate(steps, 1)
  ]
  (verdict,) = fault_response.verdicts(rows)
  assert verdict.is_ordered == is_ordered
  assert verdict.slightest == slightest


def test_order_of_rows_is_read_by_the_direction_of_the_metric():
  def one(name, fad, score):
    values = {"fad": (fad,) * 3, "text_score": (score,) * 3}
    values = {key: bootstrap.Interval(*ends) for key, ends in values.items()}
    return fault_response.Row("as it is", name, values, {}, None)

  rows = [one("a", 0, 0.9), one("b", 1, 0.5), one("c", 1, 0.6)]
  assert fault_response.out_of_order(rows) == {
    "fad": ["b before c"],
    "text_score": ["b before c"],
  }
  assert fault_response.out_of_order(rows[:2]) == {"fad": [], "text_score": []}


def test_what_cannot_be_computed_is_left_out(answer):
  _, versions, _ = answer
  clean = versions[0].heard
  few = fault_response.Heard(clean.vectors[:3], [], WORKS[:3])
  version = fault_response.Version(fault_response.CLEAN, "clean", few)
  row = fault_response.respond(few, [version])[0]
  assert row.fad_infinity is None and "kad" in row.values
  silent = fault_response.Heard(0 * clean.vectors, [], WORKS)
  row = fault_response.respond(silent, [version])[0]
  assert "kad" not in row.values and "fad" in row.values


def test_rows_of_others():
  heard = fault_response.Heard(np.arange(3)[:, None, None], [], ["a", "b", "c"])
  others = heard.of_others([1, 2, 0])
  assert [int(rows[0, 0]) for rows in others.vectors] == [1, 2, 0]
  assert others.works == heard.works and not len(others.logits)


def test_bad_input_is_named(answer):
  reference, versions, _ = answer
  with pytest.raises(ValueError, match="expected 'as it is' first"):
    fault_response.respond(reference, versions[1:])
  clean = versions[0].heard
  other = fault_response.Heard(clean.vectors, clean.logits, WORKS[::-1])
  odd = fault_response.Version("noise", "odd", other)
  with pytest.raises(ValueError, match="odd: expected the clips of"):
    fault_response.respond(reference, [versions[0], odd])
  with pytest.raises(ValueError, match=r"of \(40, 0\) clips: expected 1"):
    fault_response.Heard(clean.vectors, [], ["work"])
