# SPDX-License-Identifier: Apache-2.0
"""Our own networks as embedders (`core/protocols.py`): artefacts in.

Those of others have modules of their own: `musicnn.py`, `clap.py` and
`hub_models.py`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from musiclm_jax.core import artifacts, errors
from musiclm_jax.evaluation import audio_windows
from musiclm_jax.networks import semantic_encoders, w2v_bert
from musiclm_jax.systems import embedders, tokenizers


class MuLan:
  """Both towers of a frozen MuLan; windows of 10 s, one starts each second.

  Attributes:
    tokenizer: the towers.
  """

  name = "mulan"
  published_as = None

  def __init__(self, tokenizer: tokenizers.MuLanTokenizer):
    """Wraps an opened MuLan."""
    self.tokenizer = tokenizer
    self.fingerprint = tokenizer.fingerprint
    self.sample_rate_hz = tokenizer.config.mel.sample_rate_hz
    self.window_secs = float(tokenizer.config.window_secs)
    self.hop_secs = 1.0
    self.embedding_dim = tokenizer.config.output_dim

  def settings(self) -> dict[str, Any]:
    """Everything beside the weights that changes numbers."""
    windows = audio_windows.WindowConfig.of_secs(
      self.sample_rate_hz, self.window_secs, self.hop_secs
    )
    return {
      **windows.settings(),
      "activation": "projection, of unit length",
    }

  def embed_audio_windows(
    self, waveforms: np.ndarray, sample_rate_hz: float
  ) -> np.ndarray:
    """`[batch, samples]` to `[batch, windows, embedding_dim]`, unit length."""
    waveforms = embedders.check_waveform(waveforms)
    return self.tokenizer.embed_windows(waveforms, sample_rate_hz)

  def embed_text(self, texts: Sequence[str]) -> np.ndarray:
    """Texts to float32 `[texts, embedding_dim]` of unit length."""
    return self.tokenizer.embed_text(texts)


def _with_layer(
  config: semantic_encoders.Config, layer: int | str | None
) -> semantic_encoders.Config:
  """The config with another tap, as far as its weights reach.

  Raises:
    UserError: if there is no such block among the weights.
  """
  if layer is None:
    return config
  if not isinstance(config, w2v_bert.W2vBertConfig):
    # What lies above the tap of an imported encoder is not in its artefact.
    if not (isinstance(layer, int) and 0 <= layer <= config.tap_layer):
      raise errors.UserError(
        f"layer={layer!r}: expected 0 to {config.tap_layer}, the last block "
        "in this artefact of an imported encoder"
      )
    return dataclasses.replace(config, tap_layer=layer)
  try:
    return dataclasses.replace(config, tap_layer=layer)
  except ValueError as error:
    raise errors.UserError(str(error).replace("tap_layer", "layer")) from error


class SemanticEncoder:
  """Mean frame of a block of a frozen w2v-BERT, or of an imported encoder.

  Each window goes through the network alone, so that a vector does not depend
  on what else is in the clip, nor on its length.
  """

  published_as = None

  def __init__(
    self,
    artifact: artifacts.Artifact,
    layer: int | str | None = None,
    window_secs: float = 2.0,
    hop_secs: float = 1.0,
  ):
    """Rebuilds the network of a loaded artefact.

    Args:
      artifact: of kind 'semantic'.
      layer: block whose frames are taken, as `tap_layer` of the network's
        config; None takes the one the tokens come from.
      window_secs: of a window; no less than a frame.
      hop_secs: between the starts of two.

    Raises:
      ValueError: if a length is not a positive number.
      UserError: if there is no such layer.
    """
    found = semantic_encoders.from_settings(artifact.config)
    config = _with_layer(found, layer)
    is_ours = isinstance(config, w2v_bert.W2vBertConfig)
    self.name = "w2v_bert" if is_ours else "speech_encoder"
    self._layer = str(config.tap_layer)
    if is_ours:
      stack, index = config.tap
      self._layer = f"{stack}/{index + 1}"
    self._windows = audio_windows.WindowConfig.of_secs(
      config.sample_rate_hz, window_secs, hop_secs
    )
    if self._windows.window_samples < config.samples_per_frame:
      raise ValueError(
        f"window_secs={window_secs}: expected at least a frame, "
        f"{1 / config.frame_rate_hz:g} s"
      )
    self._features = embedders.SemanticFeatures(
      config, artifact.arrays["params"]
    )
    self.fingerprint = artifact.fingerprint
    self.sample_rate_hz = config.sample_rate_hz
    self.window_secs = self._windows.window_secs
    self.hop_secs = self._windows.hop_secs
    self.embedding_dim = config.feature_dim

  def settings(self) -> dict[str, Any]:
    """Everything beside the weights that changes numbers."""
    return {
      **self._windows.settings(),
      "layer": self._layer,
      "activation": "block output, mean over the frames of a window",
    }

  def embed_audio_windows(
    self, waveforms: np.ndarray, sample_rate_hz: float
  ) -> np.ndarray:
    """`[batch, samples]` to `[batch, windows, embedding_dim]`."""
    windows = self._windows.cut(waveforms, sample_rate_hz)
    return np.stack(
      [self._features(clip, self.sample_rate_hz).mean(1) for clip in windows]
    )
