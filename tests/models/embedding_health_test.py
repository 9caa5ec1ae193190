# SPDX-License-Identifier: Apache-2.0
"""Rank, spread and hubs of embeddings whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.models import contrastive_alarms, embedding_health, pair_losses
from musiclm_jax.training import alarms

_pair_losses = jax.jit(pair_losses.pair_losses, static_argnums=(5, 6))


def _unit(rows):
  rows = np.asarray(rows, np.float32)
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_rank_counts_directions_of_equal_variance(rank):
  # Both signs of each axis: the mean is zero, all variances are equal.
  axes = np.eye(rank, 16)
  rows = np.concatenate([axes, -axes]).astype(np.float32)
  ratio = embedding_health.participation_ratio(jnp.asarray(rows))
  np.testing.assert_allclose(ratio, rank, rtol=1e-5)
  # Where the cloud lies does not matter for its rank.
  moved = rows + np.float32(3.0)
  ratio = embedding_health.participation_ratio(jnp.asarray(moved))
  np.testing.assert_allclose(ratio, rank, rtol=1e-4)


def test_rank_is_that_of_the_covariance_eigenvalues():
  rows = np.random.default_rng(0).normal(size=(40, 6)) * 2.0 ** np.arange(6)
  values = np.linalg.eigvalsh(np.cov(rows.T))
  found = embedding_health.participation_ratio(jnp.asarray(rows))
  expected = values.sum() ** 2 / (values**2).sum()
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_constant_encoder_has_neither_spread_nor_rank():
  same = jnp.tile(jnp.eye(1, 8), (10, 1))
  assert embedding_health.participation_ratio(same) == 0.0
  assert embedding_health.spread(same) == 0.0
  both = jnp.asarray(np.eye(2, 8)[[0, 1] * 5], jnp.float32)
  np.testing.assert_allclose(embedding_health.spread(both), 0.5)


def test_hub_share_counts_the_commonest_nearest():
  nearest = jnp.asarray([4, 4, 4, 0, 1, 4, 2, 3])
  np.testing.assert_allclose(embedding_health.hub_share(nearest), 0.5)
  assert embedding_health.hub_share(jnp.arange(8)) == 1 / 8


def test_panel_knows_a_hub_whatever_the_chunk():
  generator = np.random.default_rng(1)
  audio = _unit(generator.normal(size=(12, 8)))
  # Text 5 lies in the middle of all audio, the others away from it.
  text = _unit(audio + generator.normal(size=(12, 8)) - 3 * audio.mean(0))
  audio = _unit(audio + 4.0 * text[5])
  ids = np.arange(12)[:, None]
  nearest = (audio @ text.T).argmax(1)
  assert (nearest == 5).sum() >= 10
  for chunk in (5, 100):
    found = _pair_losses(audio, text, ids, 9.0, 0.0, "infonce", chunk)
    np.testing.assert_array_equal(found.nearest_text, nearest)
    np.testing.assert_array_equal(
      found.nearest_audio, (audio @ text.T).argmax(0)
    )
    panel = embedding_health.panel(jnp.asarray(audio), jnp.asarray(text), found)
    share = panel["hub_share_audio_to_text"]
    np.testing.assert_allclose(share.total, (nearest == 5).mean())
    assert panel["embedding_spread_audio"].total < 0.5
    assert panel["embedding_rank_text"].total > 3


def _raised(values, config=None, batch_size=64, steps=(10, 250, 510)):
  config = config or contrastive_alarms.ContrastiveAlarmConfig()
  watch = alarms.Alarms(contrastive_alarms.rules(config, batch_size, 128, 0.01))
  found = [alarm for step in steps for alarm in watch.check(step, values)]
  return {alarm.rule.name: str(alarm) for alarm in found}


HEALTHY = {
  "loss_over_chance": 0.6,
  "temperature": 0.05,
  "embedding_rank_audio": 4.0,
  "embedding_rank_text": 4.0,
  "embedding_spread_audio": 0.5,
  "embedding_spread_text": 0.5,
  "hub_share_audio_to_text": 0.2,
  "hub_share_text_to_audio": 0.2,
}


@pytest.mark.parametrize(
  ("name", "metric", "bad", "good"),
  [
    ("loss_at_chance", "loss_over_chance", 0.991, 0.989),
    # Worse than chance is no better.
    ("loss_at_chance", "loss_over_chance", 1.3, 0.9),
    ("embedding_collapse", "embedding_spread_text", 0.001, 0.02),
    ("embedding_rank_collapse", "embedding_rank_audio", 1.2, 1.6),
    ("temperature_at_floor", "temperature", 0.01, 0.011),
    ("hub", "hub_share_text_to_audio", 0.6, 0.4),
  ],
)
def test_alarms_know_trouble_from_health(name, metric, bad, good):
  assert _raised(HEALTHY) == {}
  assert _raised({**HEALTHY, metric: good}) == {}
  found = _raised({**HEALTHY, metric: bad})
  assert list(found) == [name]
  assert metric in found[name]
  # Not before it has lasted.
  assert _raised({**HEALTHY, metric: bad}, steps=(10, 250)) == {}


def test_small_batches_have_no_rank_and_no_hubs():
  bad = {**HEALTHY, "embedding_rank_text": 1.0, "hub_share_text_to_audio": 1.0}
  assert set(_raised(bad)) == {"embedding_rank_collapse", "hub"}
  assert _raised(bad, batch_size=4) == {}


def test_bad_alarm_config_names_field():
  with pytest.raises(ValueError, match=r"chance=1\.5"):
    contrastive_alarms.ContrastiveAlarmConfig(chance=1.5)
  with pytest.raises(ValueError, match="patience_steps=-1"):
    contrastive_alarms.ContrastiveAlarmConfig(patience_steps=-1)
  with pytest.raises(ValueError, match="min_rank=0"):
    contrastive_alarms.ContrastiveAlarmConfig(min_rank=0)
