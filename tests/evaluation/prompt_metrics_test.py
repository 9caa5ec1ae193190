# SPDX-License-Identifier: Apache-2.0
"""Metrics of clips in a store are those of their arrays; cards say how many."""

import dataclasses

import numpy as np
import pytest
import statistics_listener

from musiclm_jax.audio import files
from musiclm_jax.core import errors
from musiclm_jax.evaluation import (
  clip_files,
  frechet_distance,
  hearing,
  kernel_distance,
  metric_card,
  prompt_metrics,
  prompt_results,
  published_weights,
  set_distances,
)

NUM_CLIPS = 40


class Told(statistics_listener.Statistics):
  """With texts: the seed of a text's clip, as if it were heard."""

  def __init__(self, vectors):
    super().__init__()
    self.vectors = vectors

  def embed_text(self, texts):
    rows = np.stack([self.vectors[text] for text in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def hear(ear, folder, store_dir, task=hearing.EMBED):
  clips = clip_files.of_folder(folder)
  keys, _ = clip_files.survey(clips)
  store = hearing.open_store(store_dir, ear, task, 16)
  listen = ear.embed_audio_windows
  if task == hearing.CLASSIFY:
    listen = ear.classify_windows
  hearing.fill(store, listen, clips, keys, 4)
  return store, keys


def material(keys, reference, pairs=None, num_expected=None):
  return prompt_results.Material(
    names=tuple(keys),
    keys=keys,
    texts={name: f"text of {name}" for name in keys},
    reference_keys=tuple(reference.values()),
    pairs=pairs or {},
    num_expected=num_expected or len(keys),
    num_reference_expected=len(reference),
    reference=clip_files.set_fingerprint(reference),
    prompts="texts",
  )


@pytest.fixture(name="folders", scope="module")
def _folders(tmp_path_factory):
  """Reference clips, others of their kind, and the others with noise."""
  root = tmp_path_factory.mktemp("sets")
  statistics_listener.write_clips(root / "reference", NUM_CLIPS, 0)
  statistics_listener.write_clips(root / "like", NUM_CLIPS, 1)
  rng = np.random.default_rng(0)
  for path in (root / "like").iterdir():
    waveform, rate_hz = files.read_audio(path)
    for name, level in (("some", 0.03), ("much", 0.2)):
      noisy = waveform + level * rng.standard_normal(len(waveform))
      files.write_wav(root / name / path.name, noisy, rate_hz)
  return root


def run(ear, folders, name, store_dir, **rest):
  store, reference = hear(ear, folders / "reference", store_dir)
  store, keys = hear(ear, folders / name, store_dir)
  found = material(keys, reference, **rest)
  results = prompt_metrics.embedded(
    ear, store, found, prompt_metrics.METRICS, notes := []
  )
  results = {one.metric: one for one in results}
  assert not notes
  return store, found, results


def test_numbers_are_those_of_the_arrays(folders, tmp_path):
  ear = statistics_listener.Statistics()
  store, found, results = run(ear, folders, "like", tmp_path)
  reference = np.concatenate(list(store.read(found.reference_keys)))
  evaluated = np.concatenate(list(store.read(found.evaluated_keys)))
  fad = frechet_distance.frechet_distance(reference, evaluated)
  assert results["fad"].card.value == pytest.approx(fad, rel=1e-9)
  card = results["fad"].card
  assert card.low < card.value < card.high
  assert (card.metric, card.embedder) == ("FAD (statistics)", "statistics")
  assert card.reference_fingerprint == found.reference
  kad = kernel_distance.estimate(reference, evaluated).value
  assert results["kad"].card.value == pytest.approx(kad, rel=1e-9)
  songs = results["song_fad"].per_clip
  assert len(songs) == NUM_CLIPS
  assert "text" not in results and "kld" not in results
  for one in results.values():
    assert one.secs >= 0 and metric_card.MetricCard.from_dict(
      one.card.to_dict()
    )


def test_distances_rise_with_noise(folders, tmp_path):
  ear = statistics_listener.Statistics()
  found = [
    run(ear, folders, name, tmp_path)[2]
    for name in ("reference", "like", "some", "much")
  ]
  for metric in ("fad", "kad"):
    values = [results[metric].card.value for results in found]
    assert values == sorted(values) and values[2] < 0.7 * values[3]
  assert found[0]["fad"].card.value == pytest.approx(0, abs=1e-6)


def test_cards_say_how_many_and_what_differs(folders, tmp_path):
  ear = statistics_listener.Statistics()
  _, _, results = run(ear, folders, "like", tmp_path, num_expected=5521)
  card = results["kad"].card
  assert card.coverage == "40 of 5,521"
  assert any("40 of 5,521 items" in text for text in card.warnings)
  other = statistics_listener.Statistics()
  other.fingerprint = "another"
  _, _, others = run(other, folders, "like", tmp_path, num_expected=5521)
  with pytest.raises(errors.UserError, match="embedder_fingerprint"):
    metric_card.check_comparable(card, others["kad"].card)
  _, _, noisy = run(ear, folders, "much", tmp_path, num_expected=5521)
  for metric in ("fad", "fad_infinity", "kad", "diversity"):
    metric_card.check_comparable(results[metric].card, noisy[metric].card)


def test_texts_and_pairs(folders, tmp_path):
  quiet = statistics_listener.Statistics()
  store, keys = hear(quiet, folders / "like", tmp_path)
  means = set_distances.means(store, list(keys.values()))
  means -= means.mean(0)
  texts = {f"text of {name}": row for name, row in zip(keys, means)}
  ear = Told(texts)
  _, _, results = run(ear, folders, "like", tmp_path)
  assert results["text"].card.metric == "Text (statistics)"
  assert set(results["text"].per_clip) == set(keys)
  assert results["text_difference"].card.low > 0

  store, reference = hear(
    quiet, folders / "reference", tmp_path, hearing.CLASSIFY
  )
  store, keys = hear(quiet, folders / "like", tmp_path, hearing.CLASSIFY)
  pairs = dict(list(zip(keys, reference.values()))[: NUM_CLIPS // 2])
  found = material(keys, reference, pairs)
  (kld,) = prompt_metrics.classified(quiet, store, found, ("kld",), [])
  assert kld.card.num_items == NUM_CLIPS // 2 and kld.card.value > 0.01
  assert kld.card.unit == "nats" and "KL(reference" in str(kld.card.settings)
  same = dataclasses.replace(found, pairs=keys)
  (zero,) = prompt_metrics.classified(quiet, store, same, ("kld",), [])
  assert zero.card.value == pytest.approx(0, abs=1e-4)


def test_samples_are_spread_and_bounded(folders, tmp_path):
  ear = statistics_listener.Statistics()
  store, keys = hear(ear, folders / "like", tmp_path)
  order = list(keys.values())
  vectors, clips = set_distances.sample(store, order, 12)
  assert len(vectors) == len(clips) <= 12
  assert len(set(clips.tolist())) >= 10 and clips.max() > 30
  # No place within the clips is preferred.
  for index in range(200):
    store.add(f"ramp {index}", np.arange(8.0)[:, None])
  store.flush()
  ramps = [f"ramp {index}" for index in range(200)]
  taken, _ = set_distances.sample(store, ramps, 400)
  assert taken.shape == (400, 1)
  assert np.bincount(taken[:, 0].astype(int)).tolist() == pytest.approx(
    [50] * 8, abs=5
  )
  every, owners = set_distances.sample(store, order)
  whole = np.concatenate(list(store.read(order)))
  np.testing.assert_array_equal(every, whole)
  assert sorted(set(owners.tolist())) == list(range(NUM_CLIPS))


def test_what_cannot_be_computed_is_said(folders, tmp_path):
  ear = statistics_listener.Statistics()
  store, reference = hear(ear, folders / "reference", tmp_path)
  store, keys = hear(ear, folders / "like", tmp_path)
  (name, *_) = keys
  found = material({name: keys[name]}, reference)
  names, notes = ("fad_infinity", "kad", "diversity"), []
  list(prompt_metrics.embedded(ear, store, found, names, notes))
  assert any("Diversity (statistics) was not computed" in one for one in notes)


def test_a_name_is_not_given_to_weights_that_lack_it(
  folders, tmp_path, monkeypatch
):
  ear = statistics_listener.Statistics()
  ear.published_as = "VGG"
  for metric in prompt_metrics.METRICS:
    with pytest.raises(ValueError, match="published_as='VGG' of 'statistics'"):
      prompt_results.title(ear, metric)
  # It is a fault of the listener, and no number that is missing.
  with pytest.raises(ValueError, match="expected None"):
    run(ear, folders, "like", tmp_path)
  known = {ear.fingerprint: "VGG"}
  monkeypatch.setattr(published_weights, "PUBLISHED", known)
  _, _, results = run(ear, folders, "like", tmp_path)
  assert results["fad"].card.metric == "FAD_VGG"


def test_unknown_metrics_are_named():
  with pytest.raises(errors.UserError, match="did you mean 'kad'"):
    prompt_metrics.check_names(["fad", "kadd"])
