# SPDX-License-Identifier: Apache-2.0
"""Embedders by what a person writes, and what they give."""

import numpy as np
import pytest
import tokenizer_artifacts

from musiclm_jax.cli import embedder_specs
from musiclm_jax.core import artifacts, errors, protocols
from musiclm_jax.evaluation import published_weights
from musiclm_jax.systems import tokenizers

RATE_HZ = tokenizer_artifacts.RATE_HZ


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tokenizer_artifacts.write(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def mulan(folder):
  return embedder_specs.open_text_embedder(f"mulan:{folder}")


@pytest.fixture(scope="module")
def w2v_bert(folder):
  return embedder_specs.open_embedder(
    f"w2v_bert:{folder}/semantic,window_secs=1,hop_secs=0.5"
  )


def test_mulan_is_that_of_the_artefact(mulan, folder):
  opened = tokenizers.MuLanTokenizer.load(folder / "mulan")
  audio = tokenizer_artifacts.music(4.5, 3)[None]
  np.testing.assert_array_equal(
    mulan.embed_audio_windows(audio, RATE_HZ),
    opened.embed_windows(audio, RATE_HZ),
  )
  text = mulan.embed_text(["a slow piano piece"])
  assert text.shape == (1, mulan.embedding_dim)
  np.testing.assert_allclose(np.linalg.norm(text, axis=-1), 1, rtol=1e-5)
  assert mulan.fingerprint == artifacts.read_fingerprint(folder / "mulan")
  assert not isinstance(mulan, protocols.Classifier)


def test_w2v_bert_is_the_mean_frame_of_a_window(w2v_bert, folder):
  opened = tokenizers.SemanticTokenizer.load(folder / "semantic")
  audio = tokenizer_artifacts.music(2.0, 3)[None]
  found = w2v_bert.embed_audio_windows(audio, RATE_HZ)
  assert found.shape == (1, 3, w2v_bert.embedding_dim)
  whole = opened.features(audio, RATE_HZ)
  assert whole.shape[1] == 50
  frames = opened.features(audio[:, :RATE_HZ], RATE_HZ)
  # The window was cut behind the resampler, whose ends differ a little.
  np.testing.assert_allclose(found[0, 0], frames[0].mean(0), atol=0.02)
  assert w2v_bert.settings()["layer"] == "masked_prediction/1"


def test_layer_of_w2v_bert_can_be_chosen(w2v_bert, folder):
  other = embedder_specs.open_embedder(
    f"w2v_bert:{folder},layer=contrastive/1,window_secs=1,hop_secs=0.5"
  )
  assert other.fingerprint == w2v_bert.fingerprint
  assert other.settings() != w2v_bert.settings()
  audio = tokenizer_artifacts.music(1.0, 3)[None]
  found = other.embed_audio_windows(audio, RATE_HZ)
  assert (
    np.abs(found - w2v_bert.embed_audio_windows(audio, RATE_HZ)).max() > 0.1
  )


def test_bad_waveforms_and_shapes(mulan, w2v_bert):
  import listener_contract

  listener_contract.check(mulan, 11025, 4.0, 3)
  listener_contract.check(w2v_bert, 11025, 2.2, 3)


@pytest.mark.parametrize(
  ("spec", "match"),
  [
    ("mulan", "'mulan': expected KIND:PATH"),
    ("mulna:{}", "did you mean 'mulan'"),
    ("w2v_bert:", "expected a semantic artefact or a bundle behind"),
    ("mulan:{},layer=1", "'layer=1' is no option of mulan"),
    ("w2v_bert:{},layers=1", "did you mean 'layer'"),
    ("w2v_bert:{},layer", "'layer' is no option"),
    ("w2v_bert:{},layer=1,layer=2", "layer is given twice"),
    ("w2v_bert:{},layer=2", "layer=2: expected contrastive/1"),
    ("w2v_bert:{},hop_secs=much", "hop_secs='much'"),
    ("w2v_bert:{},hop_secs=-1", "hop_secs=-1.0: expected a positive"),
    ("w2v_bert:{},window_secs=0.01", "expected at least a frame, 0.04 s"),
    ("w2v_bert:{}/mulan", "is a 'mulan': expected a 'semantic'"),
    ("mulan:{}/nothing", "expected a mulan artefact"),
  ],
)
def test_bad_specs_are_named(folder, spec, match):
  with pytest.raises(errors.UserError, match=match):
    embedder_specs.open_listener(spec.format(folder))


def test_what_a_kind_cannot_do_is_named(folder):
  with pytest.raises(errors.UserError, match="has no text tower"):
    embedder_specs.open_text_embedder(f"w2v_bert:{folder}")
  with pytest.raises(errors.UserError, match="does not classify"):
    embedder_specs.open_classifier(f"mulan:{folder}")


def test_a_short_name_is_for_published_weights_alone(mulan, monkeypatch):
  assert published_weights.metric_name("FAD", mulan) == "FAD (mulan)"
  monkeypatch.setattr(mulan, "published_as", "VGG")
  with pytest.raises(ValueError, match="published_as='VGG' of 'mulan'"):
    published_weights.metric_name("FAD", mulan)
  monkeypatch.setattr(
    published_weights, "PUBLISHED", {mulan.fingerprint: "VGG"}
  )
  assert published_weights.metric_name("FAD", mulan) == "FAD_VGG"
  # And the name must be used where the weights are the published ones.
  monkeypatch.setattr(mulan, "published_as", None)
  with pytest.raises(ValueError, match="expected 'VGG'"):
    published_weights.metric_name("FAD", mulan)
