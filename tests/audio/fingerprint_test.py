# SPDX-License-Identifier: Apache-2.0
"""Fingerprints know a recording again, and only a recording."""

import io

import numpy as np
import pytest
import soundfile
import tunes

from musiclm_jax.audio import files, fingerprint

_RATE_HZ = 44_100


def tune(seed, secs=6.0, brightness=0.6):
  return tunes.tune(seed, secs, _RATE_HZ, brightness)


def lossy(waveform, rate, container, subtype):
  content = io.BytesIO()
  soundfile.write(
    content,
    waveform,
    rate,
    format=container,
    subtype=subtype,
    compression_level=0.9,
  )
  return files.decode_audio(content.getvalue())


_CHANGES = {
  "mp3": lambda w: lossy(w, _RATE_HZ, "MP3", "MPEG_LAYER_III"),
  "ogg": lambda w: lossy(w, _RATE_HZ, "OGG", "VORBIS"),
  "22 kHz": lambda w: (files.resample(w, _RATE_HZ, 22_050), 22_050),
  "-6 dB": lambda w: (0.5 * w, _RATE_HZ),
  "stereo": lambda w: (np.stack([w, 0.7 * w], axis=1), _RATE_HZ),
}


def _compare(a, b, offset=0):
  return fingerprint.compare(a, b, offset)


@pytest.mark.parametrize("change", _CHANGES)
def test_knows_a_changed_copy(change):
  original = tune(1)
  a = fingerprint.make_fingerprint(original, _RATE_HZ)
  b = fingerprint.make_fingerprint(*_CHANGES[change](original))
  match = _compare(a, b)
  assert min(match.share_a, match.share_b) > 0.9
  assert match.agreement > 0.55
  assert len(np.intersect1d(a.keys, b.keys)) > 0.05 * len(a.keys)


def test_says_where_a_cut_copy_begins():
  original = tune(2)
  a = fingerprint.make_fingerprint(original, _RATE_HZ)
  cut = original[_RATE_HZ // 2 :]
  b = fingerprint.make_fingerprint(cut, _RATE_HZ)
  match = _compare(a, b, round(0.5 * fingerprint.FRAME_RATE_HZ))
  assert abs(match.offset_secs - 0.5) < 0.05
  assert match.share_b > 0.9 and abs(match.shared_secs - 5.2) < 0.6
  assert _compare(a, b, 100) is None


def test_shares_what_is_shared_only():
  head, rest, other = tune(3), tune(4), tune(5)
  a = fingerprint.make_fingerprint(np.concatenate([head, rest]), _RATE_HZ)
  b = fingerprint.make_fingerprint(np.concatenate([head, other]), _RATE_HZ)
  match = _compare(a, b)
  assert 4.5 < match.shared_secs < 7.5
  assert 0.3 < match.share_a < 0.7 and 0.3 < match.share_b < 0.7


def test_other_recordings_do_not_match():
  a = fingerprint.make_fingerprint(tune(6), _RATE_HZ)
  for other in (tune(7), tune(6)[::-1]):
    b = fingerprint.make_fingerprint(other, _RATE_HZ)
    for offset in range(-60, 61, 15):
      match = _compare(a, b, offset)
      assert match is None or max(match.share_a, match.share_b) < 0.5


@pytest.mark.parametrize("secs", [0.0, 0.1, 4.0])
def test_silence_and_a_steady_tone_match_nothing(secs):
  silence = np.zeros(round(secs * _RATE_HZ), np.float32)
  times = np.arange(4 * _RATE_HZ) / _RATE_HZ
  tone = np.sin(2 * np.pi * 440 * times).astype(np.float32)
  prints = [fingerprint.make_fingerprint(x, _RATE_HZ) for x in (silence, tone)]
  assert not prints[0].clear.any() and not len(prints[0].keys)
  assert _compare(prints[1], prints[1]) is None
  assert _compare(prints[0], prints[1]) is None
