# SPDX-License-Identifier: Apache-2.0
"""The mended SoundFont plays every instrument in tune."""

import importlib

import numpy as np
import pytest

from musiclm_jax.data import corpora, worker_pool

worker_pool.register_package(
  "musiclm_jax_builders", [str(corpora.find_builder_dir())]
)


def _module(name):
  return importlib.import_module(f"musiclm_jax_builders.score_corpus.{name}")


arrange, render, soundfont = map(_module, ("arrange", "render", "soundfont"))
instruments = _module("instruments")


def _cents(waveform, hz):
  """How far what sounds is from a harmonic tone at `hz`, within 6 semitones."""
  rate = render.SAMPLE_RATE_HZ
  part = waveform[rate // 10 : rate // 10 + rate // 2]
  spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 1 << 17))
  offsets = np.arange(-600, 601, 5)
  bins = np.arange(1, 9)[:, None] * hz * 2 ** (offsets / 1200) * (1 << 17)
  bins = np.minimum(np.round(bins / rate).astype(int), len(spectrum) - 1)
  score = (spectrum[bins] / np.sqrt(np.arange(1, 9))[:, None]).sum(0)
  return offsets[score.argmax()]


def _play(program, pitch):
  track = arrange.Track(program, "lead", ((0.0, 1.0, pitch, 90),))
  return render.synthesize([track], 1.0)


@pytest.mark.parametrize("item", instruments.INSTRUMENTS, ids=lambda i: i.name)
def test_instruments_are_in_tune(item):
  # The accordion's loops are few samples long, and rounded to whole ones.
  allowed = 90 if item.name == "accordion" else 35
  for pitch in range(max(item.lowest, 48), min(item.highest, 77), 7):
    hz = 440 * 2 ** ((pitch - 69) / 12)
    assert abs(_cents(_play(item.program, pitch), hz)) <= allowed, pitch


def test_without_mending_a_guitar_is_not(monkeypatch):
  monkeypatch.setattr(soundfont, "with_tuned_headers", lambda content: content)
  render._synthesizer.cache_clear()
  try:
    program = instruments.BY_NAME["acoustic guitar"].program
    assert abs(_cents(_play(program, 56), 207.65)) > 100
  finally:
    render._synthesizer.cache_clear()


def test_mending_twice_changes_nothing_more():
  content = render.soundfont_path().read_bytes()
  once = soundfont.with_tuned_headers(content)
  assert once[:4] == b"RIFF" and len(once) > len(content)
  # Copies of headers, a few bytes each.
  assert len(once) < len(content) + 100_000
  with pytest.raises(ValueError, match="expected an SF2"):
    soundfont.with_tuned_headers(b"RIFF" + b"\0" * 20)
