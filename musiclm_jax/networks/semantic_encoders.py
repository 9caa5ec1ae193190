# SPDX-License-Identifier: Apache-2.0
"""Networks that semantic tokens can come from, by the settings of an artefact.

All have `features(waveform, mask)`, and configs with `sample_rate_hz`,
`samples_per_frame`, `frame_rate_hz` and `feature_dim`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from musiclm_jax.core import artifacts, errors
from musiclm_jax.networks import speech_encoder, w2v_bert

Config = w2v_bert.W2vBertConfig | speech_encoder.SpeechEncoderConfig

# Settings of w2v-BERT are stored as they are; others say what they are of.
_KEY = "encoder"
_SPEECH = "speech_encoder"


def to_settings(config: Config) -> dict[str, Any]:
  """JSON-compatible settings of an artefact."""
  settings = artifacts.config_to_dict(config)
  if isinstance(config, speech_encoder.SpeechEncoderConfig):
    settings[_KEY] = _SPEECH
  return settings


def from_settings(settings: Mapping[str, Any]) -> Config:
  """The config that `to_settings` has stored.

  Raises:
    UserError: if the settings are those of another version.
  """
  values = dict(settings)
  kind = values.pop(_KEY, None)
  if kind is None:
    return artifacts.config_from_dict(w2v_bert.W2vBertConfig, values)
  if kind != _SPEECH:
    raise errors.UserError(
      f"{_KEY}={kind!r} of a semantic artefact: expected {_SPEECH!r} or none"
    )
  return artifacts.config_from_dict(speech_encoder.SpeechEncoderConfig, values)


def make(config: Config) -> nn.Module:
  """The network of a config."""
  if isinstance(config, speech_encoder.SpeechEncoderConfig):
    return speech_encoder.SpeechEncoder(config)
  return w2v_bert.W2vBert(config)
