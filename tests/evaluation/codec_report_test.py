# SPDX-License-Identifier: Apache-2.0
"""Spectral distances, ViSQOL through a stand-in program, report and page."""

import csv
import io
import json
import math
import pathlib
import re
import stat
import sys
import types

import numpy as np
import pytest

from musiclm_jax.core import errors
from musiclm_jax.evaluation import (
  codec_report,
  codec_report_page,
  spectral_distances,
  visqol,
)

_RATE_HZ = 8000
_SPECTRAL = spectral_distances.SpectralConfig(_RATE_HZ)


def _noise(seed=0, samples=4000):
  draw = np.random.default_rng(seed).normal(size=samples)
  return (0.1 * draw).astype(np.float32)


def test_distances_are_zero_for_equals_and_grow_with_the_error():
  clean, noise = _noise(0), _noise(1)

  def all_of(estimate):
    return {
      "mel": float(
        spectral_distances.multi_scale_mel(clean, estimate, _SPECTRAL)
      ),
      **spectral_distances.stft_distances(clean, estimate, _SPECTRAL),
    }

  same, near, far = (
    all_of(clean), all_of(clean + 0.1 * noise), all_of(clean + noise)
  )  # fmt: skip
  for name, value in same.items():
    assert value == 0 < near[name] < far[name], name


def test_known_distances():
  clean = _noise(0, 16000)
  half = spectral_distances.stft_distances(clean, 0.5 * clean, _SPECTRAL)
  assert half["spectral_convergence"] == pytest.approx(0.5, abs=1e-4)
  assert half["log_stft"] == pytest.approx(math.log(2), rel=0.02)
  none = spectral_distances.stft_distances(clean, 0 * clean, _SPECTRAL)
  assert none["spectral_convergence"] == pytest.approx(1.0)
  mel = spectral_distances.multi_scale_mel(clean, 0.5 * clean, _SPECTRAL)
  assert mel == pytest.approx(math.log(2), rel=0.02)
  silent = spectral_distances.stft_distances(0 * clean, clean, _SPECTRAL)
  assert np.isnan(silent["spectral_convergence"])


def test_each_row_is_measured_by_itself():
  pair = np.stack([_noise(0), _noise(1)])
  other = np.stack([_noise(0), _noise(2)])
  both = spectral_distances.stft_distances(pair, other, _SPECTRAL)
  alone = spectral_distances.stft_distances(pair[1], other[1], _SPECTRAL)
  assert both["log_stft"][0] == 0
  np.testing.assert_allclose(both["log_stft"][1], alone["log_stft"])


def _program(folder: pathlib.Path, body: str) -> str:
  """A stand-in for ViSQOL that reads the flags of the real one."""
  path = folder / "visqol"
  path.write_text(
    f"#!{sys.executable} -S\n"
    "import array, csv, sys, wave\n"
    "flags = dict(a[2:].split('=', 1) for a in sys.argv[1:])\n" + body
  )
  path.chmod(path.stat().st_mode | stat.S_IXUSR)
  return str(path)


_GOOD = """
pairs = list(csv.DictReader(open(flags['batch_input_csv'])))
with open(flags['results_csv'], 'w') as out:
  print('reference,degraded,moslqo', file=out)
  for pair in pairs:
    a, b = wave.open(pair['reference']), wave.open(pair['degraded'])
    assert a.getframerate() == b.getframerate() == 48000
    a, b = (array.array('h', x.readframes(10**6)) for x in (a, b))
    assert len(a) == len(b) > 0
    error = sum(abs(x - y) for x, y in zip(a, b)) / len(a)
    score = 4.75 - error / 3276.7
    print(pair['reference'], pair['degraded'], score, sep=',', file=out)
"""


def test_visqol_scores_pairs_at_48_khz(tmp_path):
  program = _program(tmp_path, _GOOD)
  clean, noise = _noise(0), _noise(1)
  scores = visqol.mos_lqo(
    [clean, clean], [clean, clean + noise], _RATE_HZ, program
  )
  assert scores[0] == pytest.approx(4.75) and 3.0 < scores[1] < 4.5


def test_visqol_is_named_where_it_is_missing_or_fails(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
  assert visqol.find() is None
  with pytest.raises(errors.UserError, match="no program 'visqol' on PATH"):
    visqol.mos_lqo([_noise()], [_noise()], _RATE_HZ)
  with pytest.raises(errors.UserError, match="visqol=/none: no program"):
    visqol.find("/none")
  program = _program(
    tmp_path, "print('Failed to load model', file=sys.stderr); sys.exit(3)"
  )
  with pytest.raises(errors.UserError, match="exit code 3: Failed to load"):
    visqol.mos_lqo([_noise()], [_noise()], _RATE_HZ, program)
  program = _program(tmp_path, "open(flags['results_csv'], 'w').close()")
  with pytest.raises(errors.UserError, match="0 results: expected 1"):
    visqol.mos_lqo([_noise()], [_noise()], _RATE_HZ, program)
  model = tmp_path / "model" / "libsvm_nu_svr_model.txt"
  model.parent.mkdir()
  model.write_text("svm")
  assert visqol._model_of(program, None) == str(model)


class Codec:
  """Each level is a binary digit of each of the 4 bits of a sample."""

  sample_rate_hz = _RATE_HZ
  fingerprint = "f" * 16
  stream = types.SimpleNamespace(
    num_codebooks=4, codebook_size=2, frame_rate_hz=2000.0
  )

  def encode(self, waveform):
    frames = waveform[:, : waveform.shape[1] // 4 * 4].reshape(1, -1, 4)
    level = np.clip((frames.mean(-1) + 1) * 8, 0, 15).astype(int)
    return np.stack([level >> shift & 1 for shift in (3, 2, 1, 0)], -1)

  def decode(self, codes):
    weights = np.array([8, 4, 2, 1])[: codes.shape[-1]]
    rest = 8 / 2 ** codes.shape[-1]
    values = ((codes * weights).sum(-1) + rest) / 8 - 1
    return np.repeat(values, 4, -1).astype(np.float32)


def _measured(**options):
  slow = np.sin(np.arange(4000) / 500).astype(np.float32) * 0.9
  sets = [
    codec_report.SoundSet("works", ["a <b>", "c"], [slow, slow[:3000]]),
    codec_report.pure_tones(_RATE_HZ, 0.5),
  ]
  config = codec_report.ReportConfig(
    num_shown=1, shown_counts=(1, 4, 99), **options
  )
  return codec_report.measure(Codec(), sets, config)


def test_report_of_a_known_codec(monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", str(tmp_path))
  report, listening = _measured()
  rows = report["sets"]["works"]["rows"]
  assert [row["num_codebooks"] for row in rows] == [1, 2, 3, 4]
  assert [row["bitrate_bps"] for row in rows] == [2000, 4000, 6000, 8000]
  snr = [row["si_snr_db"] for row in rows]
  assert snr == sorted(snr) and snr[3] > 20
  convergence = [row["spectral_convergence"] for row in rows]
  assert convergence == sorted(convergence, reverse=True)
  entry = report["sets"]["works"]
  assert entry["codebook_usage"] == [1.0] * 4 and entry["num_frames"] == 1750
  assert max(entry["entropy_bps"]) <= 2000.0 + 1e-6
  assert "no program" in report["visqol"] and "visqol" not in rows[0]
  assert [one.name for one in listening] == ["a <b>", "55 Hz"]
  assert sorted(listening[0].decoded) == [1, 4]
  # 4 kHz is half the rate: 3520 Hz is still there, 7040 Hz is not.
  assert report["sets"]["pure tones"]["num_sounds"] == 10
  with pytest.raises(errors.UserError, match="from 1 to 4"):
    _measured(codebook_counts=(9,))


class MiddleCodec(Codec):
  """The same of two channels, and deaf to how they differ."""

  def encode(self, waveform):
    return super().encode(waveform.mean(-1))

  def decode(self, codes):
    return np.repeat(super().decode(codes)[..., None], 2, -1)


def test_lost_width_shows_in_the_side():
  middle = np.sin(np.arange(4000) / 500).astype(np.float32) * 0.9
  side = 0.05 * np.sin(np.arange(4000) / 100).astype(np.float32)
  wide = np.stack([middle + side, middle - side], -1)
  sets = [
    codec_report.SoundSet("wide", ["a"], [wide]),
    codec_report.SoundSet("narrow", ["b"], [np.stack([middle] * 2, -1)]),
  ]
  config = codec_report.ReportConfig(codebook_counts=(4,), num_shown=0)
  report, _ = codec_report.measure(MiddleCodec(), sets, config)
  (wide,), (narrow,) = (report["sets"][s]["rows"] for s in ("wide", "narrow"))
  assert wide["si_snr_middle_db"] > 20
  # Nothing of it came out, and where there was none there is no number.
  assert wide["si_snr_side_db"] == -120.0
  assert math.isnan(narrow["si_snr_side_db"])
  assert set(wide) <= set(codec_report.COLUMNS)
  mono, _ = _measured(codebook_counts=(4,))
  assert "si_snr_side_db" not in mono["sets"]["works"]["rows"][0]


def test_visqol_joins_the_table(tmp_path):
  report, _ = _measured(
    visqol=_program(tmp_path, _GOOD), codebook_counts=(1, 4)
  )
  low, high = (row["visqol"] for row in report["sets"]["works"]["rows"])
  assert low < high < 4.75


def test_the_folder_stands_alone(tmp_path):
  report, listening = _measured(codebook_counts=(1, 4))
  report["skipped"] = [{"path": "x.wav", "reason": "x.wav is empty"}]
  report["sets"]["works"]["rows"][0]["si_snr_db"] = math.nan
  audio = tmp_path / "out" / "audio"
  audio.mkdir(parents=True)
  for name in ("my_recording.wav", "7_03_original.wav"):
    (audio / name).write_bytes(b"sound")
  path = codec_report_page.write(tmp_path / "out", report, listening)
  # A recording of the user's stays, a sound of an earlier report goes.
  assert (audio / "my_recording.wav").exists()
  assert not (audio / "7_03_original.wav").exists()
  text = path.read_text()
  assert "a &lt;b&gt;" in text and "<b>a" not in text and "x.wav is" in text
  assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text).replace(
    "http://www.w3.org", ""
  ).replace("http://purl.org", "").replace("http://creativecommons.org", "")
  players = re.findall(r'<audio[^>]* src="([^"]*)"', text)
  assert len(players) == 6
  assert all((path.parent / name).stat().st_size > 1000 for name in players)
  saved = json.loads((path.parent / "report.json").read_text())
  assert saved["sets"]["works"]["rows"][0]["si_snr_db"] is None
  table = list(
    csv.DictReader(io.StringIO((path.parent / "report.csv").read_text()))
  )
  assert [(row["set"], row["num_codebooks"]) for row in table] == [
    ("works", "1"), ("works", "4"), ("pure tones", "1"), ("pure tones", "4"),
  ]  # fmt: skip
