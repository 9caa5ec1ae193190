# SPDX-License-Identifier: Apache-2.0
"""musicnn as a judge: its spectrogram, its patches, its verb."""

import jax
import jax.numpy as jnp
import listener_contract
import numpy as np
import pytest
import tokenizer_artifacts

from musiclm_jax.cli import embedder_specs, main
from musiclm_jax.core import artifacts, errors
from musiclm_jax.evaluation import musicnn as judge
from musiclm_jax.networks import musicnn

CONFIG = musicnn.MusicnnConfig(
  num_classes=3,
  num_mels=20,
  window_frames=30,
  timbral_filters=4,
  temporal_filters=3,
  mid_filters=5,
  dense_units=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  shapes = jax.eval_shape(
    musicnn.Musicnn(CONFIG).init, jax.random.key(0), jnp.zeros((1, 30, 20))
  )
  settings = {
    "name": "small",
    "class_names": ["drums", "flute", "loud"],
    "network": artifacts.config_to_dict(CONFIG),
  }
  params = tokenizer_artifacts.random_values(shapes["params"], 0)
  directory = tmp_path_factory.mktemp("tagger")
  artifacts.save(directory, "tagger", settings, {"params": params})
  return directory


def test_is_a_classifier_and_an_embedder(folder):
  # 30 frames of 16 ms are a patch; 1.2 s at 16 kHz have 76 frames.
  found = embedder_specs.open_classifier(f"musicnn:{folder}")
  listener_contract.check(found, 22050, 1.2, 2, "classify_windows")
  listener_contract.check(found, 22050, 1.2, 2, "embed_audio_windows")
  close = embedder_specs.open_embedder(f"musicnn:{folder},hop_secs=0.16")
  audio = 0.1 * np.random.default_rng(0).normal(size=(2, 19200))
  by_hop = close.embed_audio_windows(audio, 16000)
  assert by_hop.shape == (2, 5, 8)
  np.testing.assert_allclose(
    by_hop[:, ::3], found.embed_audio_windows(audio, 16000), atol=1e-5
  )
  with pytest.raises(errors.UserError, match="hop_secs=0.001: expected at"):
    embedder_specs.open_listener(f"musicnn:{folder},hop_secs=0.001")


def test_spectrogram_is_the_one_the_package_makes():
  """Against a Fourier transform written out, frame by frame."""
  import librosa

  samples = np.random.default_rng(0).normal(size=2000).astype(np.float32)
  found = judge.log_mel(0.1 * samples[None], 96)[0]
  assert found.shape == (8, 96)
  mirrored = np.pad(0.1 * samples.astype(np.float64), 256, mode="reflect")
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
  bands = librosa.filters.mel(sr=16000, n_fft=512, n_mels=96)
  for frame in (0, 3, 7):
    cut = mirrored[256 * frame : 256 * frame + 512] * hann
    power = bands @ np.abs(np.fft.rfft(cut)) ** 2
    expected = np.log10(10000 * power + 1)
    # Half precision has 11 bits: 0.0005 of a power is 0.0002 of a log10.
    np.testing.assert_allclose(found[frame], expected, atol=3e-4)


def test_loud_music_stays_finite():
  """The package's product in half precision becomes infinite here."""
  tone = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
  found = judge.log_mel(tone[None].astype(np.float32), 96)
  assert found.max() > np.log10(65504)
  assert np.isfinite(found).all()


def test_sizes_are_checked():
  with pytest.raises(ValueError, match="architecture='resnet'"):
    musicnn.MusicnnConfig(architecture="resnet")
  with pytest.raises(ValueError, match="window_frames=20"):
    musicnn.MusicnnConfig(architecture="vgg", window_frames=20)
  with pytest.raises(ValueError, match="mid_filters=0"):
    musicnn.MusicnnConfig(mid_filters=0)
  with pytest.raises(ValueError, match=r"expected \[batch, 30, 20\]"):
    musicnn.Musicnn(CONFIG).init(jax.random.key(0), jnp.zeros((1, 29, 20)))


def test_verb_names_what_is_missing(tmp_path, capsys):
  command = ["import_tagger", f"--output_dir={tmp_path}/out"]
  assert main.main([*command, f"--package={tmp_path}"]) == 1
  assert "expected the folder of the package" in capsys.readouterr().err
  (tmp_path / "configuration.py").write_text("MSD_LABELS = ['a']\n")
  assert main.main([*command, f"--package={tmp_path}"]) == 1
  assert "no model 'MSD_musicnn' in" in capsys.readouterr().err
  (tmp_path / "MSD_musicnn").mkdir()
  assert main.main([*command, f"--package={tmp_path}"]) == 1
  assert "no TensorFlow checkpoint at" in capsys.readouterr().err
