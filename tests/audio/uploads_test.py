# SPDX-License-Identifier: Apache-2.0
"""Audio of strangers: what is read, and that nothing else gets through."""

import io
import os
import struct

import numpy as np
import pytest
import soundfile

from musiclm_jax.audio import uploads
from musiclm_jax.core import errors

LIMITS = uploads.Limits(max_bytes=200_000, max_secs=3.0)


def encoded(secs=1.0, rate_hz=8000, channels=1, kind="WAV", subtype=None):
  """Bytes of a quiet tone."""
  times = np.arange(round(secs * rate_hz)) / rate_hz
  tone = 0.1 * np.sin(2 * np.pi * 440 * times).astype(np.float32)
  buffer = io.BytesIO()
  waveform = np.stack([tone] * channels, axis=-1)
  soundfile.write(buffer, waveform, rate_hz, format=kind, subtype=subtype)
  return buffer.getvalue()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_known_formats_are_read(kind):
  waveform, rate_hz = uploads.decode(encoded(kind=kind), LIMITS)
  assert rate_hz == 8000 and waveform.ndim == 2 and waveform.shape[1] == 1
  assert abs(len(waveform) - 8000) < 2500  # MP3 pads
  assert 0.05 < np.abs(waveform).max() < 0.2


def test_channels_are_kept():
  waveform, _ = uploads.decode(encoded(channels=2), LIMITS)
  assert waveform.shape == (8000, 2)


def with_number(data, offset, value):
  return data[:offset] + struct.pack("<I", value) + data[offset + 4 :]


@pytest.mark.parametrize(
  "data, message",
  [
    (b"", "no audio file"),
    (b"hello, this is a text", "no audio file"),
    (b"%PDF-1.4" + bytes(100), "no audio file"),
    (b"RIFF" + bytes(4) + b"AVI " + bytes(100), "no audio file"),
    (b"RIFF" + bytes(4) + b"WAVE", "cannot be read"),
    (b"fLaC" + b"\xff" * 200, "cannot be read"),
    (encoded(4.0), "longer than 3 s"),
    (encoded(4.0, kind="FLAC"), "longer than 3 s"),
    (encoded(rate_hz=2000), "2000 Hz: expected 4000 to"),
    (with_number(encoded(), 24, 4_000_000_000), "Hz: expected|cannot be read"),
    (encoded(channels=9), "9 channels"),
    (encoded()[:44], "no samples"),
    (encoded(kind="FLAC")[:200], "truncated|cannot be read"),
  ],
)
def test_what_is_not_taken_is_said_in_one_line(data, message):
  with pytest.raises(errors.UserError, match=message) as found:
    uploads.decode(data, LIMITS, "../../etc/<b>x</b>.wav")
  assert "\n" not in str(found.value) and "etc" not in str(found.value)
  assert "<" not in str(found.value)


def test_not_a_number_is_refused():
  buffer = io.BytesIO()
  waveform = np.full(8000, np.nan, np.float32)
  soundfile.write(buffer, waveform, 8000, format="WAV", subtype="FLOAT")
  with pytest.raises(errors.UserError, match="NaN"):
    uploads.decode(buffer.getvalue(), LIMITS)


def test_damaged_files_are_user_errors_or_sound():
  generator = np.random.default_rng(0)
  kinds = ("WAV", "FLAC", "OGG", "MP3")
  sources = [encoded(kind=kind) for kind in kinds]
  refused = 0
  for round_ in range(200):
    data = bytearray(sources[round_ % len(sources)])
    if round_ % 3 == 0:
      del data[generator.integers(0, len(data)) :]
    else:
      # Headers above all: that is where sizes are.
      end = min(len(data), 80 if round_ % 3 == 1 else len(data))
      for place in generator.integers(0, end, 8):
        data[place] = generator.integers(0, 256)
    try:
      waveform, rate_hz = uploads.decode(bytes(data), LIMITS)
      assert np.isfinite(waveform).all()
      assert len(waveform) <= LIMITS.max_secs * rate_hz
    except errors.UserError:
      refused += 1
  assert 50 < refused < 200


def test_content_is_of_the_folder_of_uploads(tmp_path):
  folder, outside = tmp_path / "uploads", tmp_path / "secret.wav"
  folder.mkdir()
  outside.write_bytes(b"secret")
  (folder / "a.wav").write_bytes(b"mine")
  (folder / "link.wav").symlink_to(outside)
  os.mkfifo(folder / "pipe.wav")
  assert uploads.content(folder / "a.wav", folder, LIMITS) == b"mine"
  for path in (
    outside,
    folder / "../secret.wav",
    folder / "link.wav",
    folder / "pipe.wav",
    folder / "none.wav",
    folder,
    "/etc/passwd",
    "http://127.0.0.1/a.wav",
    "a\0.wav",
    "x" * 5000,
  ):
    with pytest.raises(errors.UserError, match="was not uploaded here"):
      uploads.content(path, folder, LIMITS)


def test_size_is_limited(tmp_path):
  (tmp_path / "a.wav").write_bytes(bytes(LIMITS.max_bytes + 1))
  with pytest.raises(errors.UserError, match="is larger than"):
    uploads.content(tmp_path / "a.wav", tmp_path, LIMITS)


@pytest.mark.parametrize(
  "name, shown",
  [
    ("../../a b.wav", "a b.wav"),
    ("C:\\x\\a.wav", "a.wav"),
    ("<script>.wav", "_script_.wav"),
    ("a\nb", "a_b"),
    ("..", "the upload"),
    ("x" * 100 + ".wav", "x" * 36 + ".wav"),
  ],
)
def test_names_are_shown_without_folders(name, shown):
  assert uploads.shown_name(name) == shown


def test_limits_are_positive():
  with pytest.raises(ValueError, match="max_secs=0: expected > 0"):
    uploads.Limits(max_secs=0)
