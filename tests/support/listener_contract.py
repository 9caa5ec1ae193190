# SPDX-License-Identifier: Apache-2.0
"""What every embedder and classifier must hold (`core/protocols.py`)."""

import json

import numpy as np
import pytest

from musiclm_jax.core import errors, protocols


def check(listener, rate_hz, secs, num_windows, call=None, atol=1e-5):
  """Checks a listener.

  Args:
    listener: to check.
    rate_hz: of the audio it gets, another than its own.
    secs: of audio, long enough for two windows.
    num_windows: that `secs` must give.
    call: of its methods, 'embed_audio_windows' or 'classify_windows'; by
      default the one it has.
    atol: between a row alone and in a batch.
  """
  assert isinstance(listener, protocols.Listener)
  is_embedder = isinstance(listener, protocols.Embedder)
  call = call or ("embed_audio_windows" if is_embedder else "classify_windows")
  width = (
    listener.embedding_dim
    if call == "embed_audio_windows"
    else len(listener.class_names)
  )
  function = getattr(listener, call)
  settings = listener.settings()
  assert json.loads(json.dumps(settings)) == settings
  for name in ("sample_rate_hz", "window_secs", "hop_secs"):
    assert settings[name] == getattr(listener, name), name
  assert {"resampler", "gain", "short_audio", "tail", "activation"} <= set(
    settings
  )
  assert rate_hz != listener.sample_rate_hz

  generator = np.random.default_rng(0)
  audio = 0.1 * generator.normal(size=(3, round(secs * rate_hz)))
  audio = audio.astype(np.float32)
  found = function(audio, rate_hz)
  assert found.shape == (3, num_windows, width)
  assert found.dtype == np.float32
  assert np.isfinite(found).all()
  # Another clip, another answer; and a row depends on its own clip alone.
  assert np.abs(found[0] - found[1]).max() > 10 * atol
  np.testing.assert_allclose(
    function(audio[1:2], rate_hz)[0], found[1], 0, atol
  )
  # Shorter than a window: one row all the same.
  assert function(audio[:1, : rate_hz // 20], rate_hz).shape == (1, 1, width)

  bad = audio.copy()
  bad[2, 5] = np.nan
  with pytest.raises(errors.UserError, match="waveform 2 .* NaN"):
    function(bad, rate_hz)
  for wrong in (audio[0], audio[:, :0], audio[..., None]):
    with pytest.raises(ValueError, match="shape"):
      function(wrong, rate_hz)
  with pytest.raises(ValueError, match="sample_rate_hz"):
    function(audio, 0)
