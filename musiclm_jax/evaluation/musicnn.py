# SPDX-License-Identifier: Apache-2.0
"""musicnn as a judge: waveforms in, logits of 50 tags or vectors out.

Trained by others on other music than ours (MagnaTagATune or the Million Song
Dataset), so its verdict does not favour our networks. Opened from the artefact
that `musiclm import_tagger` writes; no TensorFlow.
"""

from typing import Any

import jax
import numpy as np

from musiclm_jax.core import artifacts
from musiclm_jax.evaluation import audio_windows, published_weights
from musiclm_jax.networks import musicnn
from musiclm_jax.systems import embedders, musicnn_import

SAMPLE_RATE_HZ = 16000
_FFT_LENGTH, _HOP_LENGTH = 512, 256
# A patch passes through some hundreds of maps of its own size.
_MAX_PATCHES = 8


def log_mel(waveforms: np.ndarray, num_mels: int) -> np.ndarray:
  """The spectrogram the package makes: `log10(10000 * power + 1)`.

  As in librosa 0.7, with which the models were trained: frames are centred on
  multiples of the hop, ends are mirrored, mels are Slaney's, of unit area.
  Powers are rounded to half precision, as theirs were. There the product was
  in half precision too and became infinite above a power of 6.55; here it is
  finite.

  Args:
    waveforms: float32 `[batch, samples]` at 16 kHz, more than 256 samples.
    num_mels: bands.

  Returns:
    float32 `[batch, 1 + samples // 256, num_mels]`.
  """
  import librosa  # here: it loads numba

  power = librosa.feature.melspectrogram(
    y=np.asarray(waveforms, np.float32),
    sr=SAMPLE_RATE_HZ,
    n_fft=_FFT_LENGTH,
    hop_length=_HOP_LENGTH,
    n_mels=num_mels,
    pad_mode="reflect",
  )
  most = np.finfo(np.float16).max
  power = np.minimum(power, most).astype(np.float16).astype(np.float32)
  return np.log10(10000 * power + 1).swapaxes(1, 2)


class Musicnn:
  """A tagger; also an embedder, by what its logits are computed from.

  Attributes:
    class_names: tags.
  """

  multi_label = True

  def __init__(
    self, artifact: artifacts.Artifact, hop_secs: float | None = None
  ):
    """Rebuilds the network of a loaded artefact.

    Args:
      artifact: of kind 'tagger'.
      hop_secs: between the starts of two patches, rounded to frames of 16 ms;
        None lays them side by side, as the package does.

    Raises:
      ValueError: if `hop_secs` is not positive.
    """
    config = artifacts.config_from_dict(
      musicnn.MusicnnConfig, artifact.config["network"]
    )
    self.config = config
    self.name = artifact.config["name"]
    self.class_names = tuple(artifact.config["class_names"])
    self.fingerprint = artifact.fingerprint
    self.published_as = published_weights.find(artifact.fingerprint)
    patch = config.window_frames * _HOP_LENGTH
    hop = patch
    if hop_secs is not None:
      hop = round(hop_secs * SAMPLE_RATE_HZ / _HOP_LENGTH) * _HOP_LENGTH
      if hop < _HOP_LENGTH:
        raise ValueError(
          f"hop_secs={hop_secs}: expected at least a frame, "
          f"{_HOP_LENGTH / SAMPLE_RATE_HZ} s"
        )
    self._windows = audio_windows.WindowConfig(SAMPLE_RATE_HZ, patch, hop)
    self.sample_rate_hz = SAMPLE_RATE_HZ
    self.window_secs = self._windows.window_secs
    self.hop_secs = self._windows.hop_secs
    self.embedding_dim = config.embedding_dim
    self._variables = {"params": jax.device_put(artifact.arrays["params"])}
    self._apply = jax.jit(musicnn.Musicnn(config).apply)

  @classmethod
  def load(cls, directory: str, hop_secs: float | None = None) -> "Musicnn":
    """Opens an artefact of kind 'tagger', verified.

    Raises:
      UserError: if it is missing, damaged or of another kind.
      ValueError: see `__init__`.
    """
    return cls(artifacts.load(directory, musicnn_import.KIND), hop_secs)

  def settings(self) -> dict[str, Any]:
    """Everything beside the weights that changes numbers."""
    activation = "dense layer, after ReLU and batch norm"
    if self.config.architecture == "vgg":
      activation = "last pool, flattened"
    return {
      **self._windows.settings(),
      "activation": activation,
      "class_activation": "logits, before the sigmoid",
    }

  def _answers(
    self, waveforms: np.ndarray, sample_rate_hz: float, index: int
  ) -> np.ndarray:
    """Output `index` of the network for each patch of each waveform."""
    waveforms = self._windows.fill(
      self._windows.prepare(waveforms, sample_rate_hz)
    )
    frames, hop = self.config.window_frames, self._windows.hop_samples
    results = []
    for clip in log_mel(waveforms, self.config.num_mels):
      patches = np.lib.stride_tricks.sliding_window_view(clip, frames, axis=0)
      patches = patches[:: hop // _HOP_LENGTH].swapaxes(1, 2)
      results.append(
        embedders.in_chunks(
          lambda part: self._apply(self._variables, part)[index],
          patches,
          max_rows=_MAX_PATCHES,
        )
      )
    return np.stack(results)

  def classify_windows(
    self, waveforms: np.ndarray, sample_rate_hz: float
  ) -> np.ndarray:
    """`[batch, samples]` to logits `[batch, patches, classes]`."""
    return self._answers(waveforms, sample_rate_hz, 0)

  def embed_audio_windows(
    self, waveforms: np.ndarray, sample_rate_hz: float
  ) -> np.ndarray:
    """`[batch, samples]` to vectors `[batch, patches, embedding_dim]`."""
    return self._answers(waveforms, sample_rate_hz, 1)
