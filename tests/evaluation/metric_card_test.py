# SPDX-License-Identifier: Apache-2.0
"""Cards: round trip, refusal of unlike numbers, warnings."""

import dataclasses
import json
import math

import numpy as np
import pytest

from musiclm_jax.core import errors
from musiclm_jax.evaluation import metric_card


def card(**changes):
  fields = {
    "metric": "FAD (mulan)",
    "value": np.float32(1.5),
    "low": 1.0,
    "high": 2.0,
    "num_items": 5001,
    "num_expected": 5521,
    "items_fingerprint": metric_card.fingerprint_of(["a", "b"]),
    "embedder": "mulan",
    "embedder_fingerprint": "123abc",
    "embedder_settings": {"hop_secs": 1.0, "resampler": "soxr HQ"},
    "reference_fingerprint": "ref",
    "num_reference": 900,
    "settings": {"diagonal": False, "sizes": (500, 1000)},
    "warnings": ("be careful",),
  }
  return metric_card.MetricCard(**{**fields, **changes})


def test_round_trip():
  first = card()
  stored = json.dumps(first.to_dict(), allow_nan=False)
  assert metric_card.MetricCard.from_dict(json.loads(stored)) == first
  assert first.settings["sizes"] == [500, 1000]
  without = card(value=math.nan, low=math.nan, high=math.nan)
  content = without.to_dict()
  assert content["value"] is None and content["low"] is None
  again = metric_card.MetricCard.from_dict(content)
  assert again.to_dict() == without.to_dict() and math.isnan(again.value)


def test_says_n_of_what():
  assert card().coverage == "5,001 of 5,521"
  assert str(card()) == (
    "FAD (mulan): 1.5 [1, 2] (lower is better, n = 5,001 of 5,521); be careful"
  )
  assert card().to_dict()["coverage"] == "5,001 of 5,521"


def test_cards_that_differ_in_their_outcome_compare():
  metric_card.check_comparable(
    card(), card(value=9, low=8, high=10, num_items=5000, warnings=())
  )


@pytest.mark.parametrize(
  "changes, names",
  [
    ({"embedder_fingerprint": "other"}, ("embedder_fingerprint",)),
    (
      {"embedder_settings": {"hop_secs": 0.5, "gain": 1}},
      (
        "embedder_settings.gain",
        "embedder_settings.hop_secs",
        "embedder_settings.resampler",
      ),
    ),
    (
      {"settings": {"diagonal": True, "sizes": [500, 1000]}},
      ("settings.diagonal",),
    ),
    (
      {"reference_fingerprint": "x", "num_reference": 1},
      ("reference_fingerprint", "num_reference"),
    ),
    ({"num_expected": 6000}, ("num_expected",)),
    ({"metric": "KAD (mulan)"}, ("metric",)),
    ({"items_fingerprint": ""}, ("items_fingerprint",)),
  ],
)
def test_cards_that_differ_are_refused_by_name(changes, names):
  other = card(**changes)
  assert set(metric_card.differing_fields(card(), other)) == set(names)
  with pytest.raises(errors.UserError) as error:
    metric_card.check_comparable(card(), other)
  for name in names:
    assert f" {name} (" in str(error.value)
  assert "\n" not in str(error.value)


def test_values_of_both_cards_are_shown():
  with pytest.raises(errors.UserError, match="gain.*'absent' and 3"):
    metric_card.check_comparable(card(settings={}), card(settings={"gain": 3}))


def test_number_of_items_counts_where_the_value_depends_on_it():
  first = card(depends_on_num_items=True)
  with pytest.raises(errors.UserError, match="num_items .5001 and 700."):
    metric_card.check_comparable(
      first, card(depends_on_num_items=True, num_items=700)
    )


def test_every_field_is_outcome_or_compared():
  """A field added later is compared unless it is said to be an outcome."""
  names = {field.name for field in dataclasses.fields(metric_card.MetricCard)}
  changes = {
    "metric": "x",
    "unit": "dB",
    "better": "higher",
    "num_expected": 7000,
    "depends_on_num_items": True,
    "confidence": 0.9,
    "items_fingerprint": "x",
    "embedder": "x",
    "embedder_fingerprint": "x",
    "embedder_settings": {},
    "reference_fingerprint": "x",
    "num_reference": 1,
    "settings": {},
  }
  outcome = {"value", "low", "high", "num_items", "warnings"}
  assert names == set(changes) | outcome
  for name, value in changes.items():
    assert metric_card.differing_fields(card(), card(**{name: value})), name


def test_few_items_are_warned_of():
  warn = metric_card.small_sample_warnings
  assert warn(500, num_expected=500) == ()
  assert "n = 12" in warn(12)[0]
  assert "KAD" in warn(40, is_kernel=True)[0] and not warn(40)
  assert "5 of 9" in warn(5, num_expected=9)[-1]
  assert "singular" in warn(99, num_vectors=100, embedding_dim=128)[0]
  assert "FAD-infinity" in warn(99, num_vectors=900, embedding_dim=128)[0]
  assert not warn(99, num_vectors=1280, embedding_dim=128)


def test_fingerprint_knows_items_and_not_their_order():
  same = metric_card.fingerprint_of(["x", "y"])
  assert same == metric_card.fingerprint_of(["y", "x"])
  others = (["xy"], ["x", "y", "y"], ["x"], [])
  assert len({metric_card.fingerprint_of(one) for one in others} | {same}) == 5


@pytest.mark.parametrize(
  "changes, match",
  [
    ({"num_items": 6000}, "num_items=6000"),
    ({"better": "up"}, "better='up'"),
    ({"low": 3.0}, "low=3.0"),
    ({"low": math.nan}, "low=nan"),
    ({"embedder": ""}, "expected both or neither"),
    ({"confidence": 1.0}, "confidence=1.0"),
    ({"settings": {"x": object()}}, "settings: expected values for JSON"),
    ({"settings": {"x": math.inf}}, "settings: expected values for JSON"),
    ({"metric": ""}, "expected a name"),
  ],
)
def test_cards_that_cannot_be_are_refused(changes, match):
  with pytest.raises(ValueError, match=match):
    card(**changes)


def test_damaged_cards_are_user_errors():
  good = card().to_dict()
  for content, match in (
    ({**good, "format_version": 9}, "format 9: expected 1"),
    ({**good, "extra": 1}, r"unknown \['extra'\]"),
    ({k: v for k, v in good.items() if k != "unit"}, "'unit'"),
    ({**good, "num_items": 10**6}, "num_items=1000000"),
    ({**good, "value": "much"}, "damaged metric card"),
  ):
    with pytest.raises(errors.UserError, match=match):
      metric_card.MetricCard.from_dict(content)
