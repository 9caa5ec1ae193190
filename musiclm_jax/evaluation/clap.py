# SPDX-License-Identifier: Apache-2.0
"""CLAP as an embedder: waveforms and texts in, vectors of one space out."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from musiclm_jax.audio import clap_mel
from musiclm_jax.evaluation import audio_windows, published_weights
from musiclm_jax.networks import clap_audio, clap_text
from musiclm_jax.systems import clap_import, embedders, mulan_inputs

# Ids of a text, as the models were trained; what is longer is cut.
_TEXT_LENGTH = 77
_MAX_WINDOWS = 8


class Clap:
  """Both towers of a CLAP without feature fusion; windows of 10 s."""

  name = "clap"

  def __init__(self, parts: clap_import.Clap, hop_secs: float | None = None):
    """Binds both networks to their parameters.

    Args:
      parts: of `clap_import.load`.
      hop_secs: between the starts of two windows; None lays them side by side.

    Raises:
      ValueError: if `hop_secs` is not positive.
    """
    self._mel, self._vocabulary = parts.mel, parts.vocabulary
    rate_hz = parts.mel.sample_rate_hz
    self._windows = audio_windows.WindowConfig.of_secs(
      rate_hz,
      parts.window_secs,
      parts.window_secs if hop_secs is None else hop_secs,
      short_audio="repeatpad",
    )
    self.fingerprint = parts.fingerprint
    self.published_as = published_weights.find(parts.fingerprint)
    self.sample_rate_hz = rate_hz
    self.window_secs = self._windows.window_secs
    self.hop_secs = self._windows.hop_secs
    self.embedding_dim = parts.audio.output_dim
    self._text_length = min(_TEXT_LENGTH, parts.text.bert.max_positions)
    self._audio_variables = {"params": jax.device_put(parts.audio_params)}
    self._text_variables = {"params": jax.device_put(parts.text_params)}
    self._audio_apply = jax.jit(clap_audio.ClapAudio(parts.audio).apply)
    self._text_apply = jax.jit(clap_text.ClapText(parts.text).apply)

  @classmethod
  def load(
    cls, directory: str | os.PathLike, hop_secs: float | None = None
  ) -> "Clap":
    """Opens the folder of a Hugging Face `ClapModel`.

    Raises:
      UserError: see `clap_import.load`.
      ValueError: see `__init__`.
    """
    return cls(clap_import.load(directory), hop_secs)

  def settings(self) -> dict[str, Any]:
    """Everything beside the weights that changes numbers."""
    return {
      **self._windows.settings(),
      "activation": "projection, of unit length",
      "spectrogram": "audio/clap_mel.py",
      "text_length": self._text_length,
    }

  def embed_audio_windows(
    self, waveforms: np.ndarray, sample_rate_hz: float
  ) -> np.ndarray:
    """`[batch, samples]` to `[batch, windows, embedding_dim]`, unit length."""
    results = []
    for windows in self._windows.cut(waveforms, sample_rate_hz):
      parts = [
        embedders.in_chunks(
          lambda part: self._audio_apply(self._audio_variables, part),
          clap_mel.log_mel(windows[start : start + _MAX_WINDOWS], self._mel),
        )
        for start in range(0, len(windows), _MAX_WINDOWS)
      ]
      results.append(np.concatenate(parts))
    return np.stack(results)

  def embed_text(self, texts: Sequence[str]) -> np.ndarray:
    """Texts to float32 `[texts, embedding_dim]` of unit length.

    A longer text is cut, with a warning.

    Raises:
      UserError: if something is no text, or a text is blank; names which.
    """
    texts = [texts] if isinstance(texts, str) else texts
    ids = mulan_inputs.as_ids(texts, self._vocabulary, self._text_length)
    return embedders.in_chunks(
      lambda part: self._text_apply(self._text_variables, part), ids
    )
