# SPDX-License-Identifier: Apache-2.0
"""The report page: everything is shown, nothing is fetched."""

import html.parser
import pathlib
import re

import numpy as np
import pytest

from musiclm_jax.audio import files
from musiclm_jax.core import errors
from musiclm_jax.evaluation import report, report_figures, report_page
from musiclm_jax.evaluation import summary as summary_lib

_RATE = 16000


class _Page(html.parser.HTMLParser):
  """Tags balanced, ids, references and alternative texts of a page."""

  _VOID = {"meta", "link", "br", "img", "input", "hr"}

  def __init__(self, text):
    super().__init__()
    self.open, self.ids, self.references, self.unnamed = [], [], [], []
    self.text, self.tags = "", []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    attributes = dict(attrs)
    self.tags.append(tag)
    if tag not in self._VOID:
      self.open.append(tag)
    if "id" in attributes:
      self.ids.append(attributes["id"])
    self.references += [
      attributes[name] for name in ("src", "href") if name in attributes
    ]
    if tag in ("svg", "audio") and not attributes.get("aria-label"):
      self.unnamed.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in self._VOID:
      self.handle_endtag(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def _tone(secs=1.0, hz=440.0):
  time = np.arange(int(secs * _RATE)) / _RATE
  return (0.3 * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def _summary(samples):
  scores = {
    "heldout_cross_entropy": 2.125,
    "bigram_cross_entropy": 2.5,
    "unigram_cross_entropy": 3.0,
    "heldout_per_level": [2.0, 2.25],
    "bigram_per_level": [2.5, 2.5],
    "unigram_per_level": [3.0, 3.0],
    "num_tokens": 4321,
  }
  found = {
    "recall_at_1": 0.1,
    "recall_at_10": 0.6,
    "chance_at_10": 0.1,
    "num_items": 100,
    "median_rank": 8.0,
  }
  interval = {"mean": 0.3, "low": 0.2, "high": 0.4}
  return summary_lib.build_summary(
    steps=[{"name": "train codec", "seconds": 125.0}],
    codec={
      "log_mel_distance": {"1": 1.0, "2": 0.8, "4": 0.777},
      "si_snr_db": {"1": -1.5, "2": 0.5, "4": float("nan")},
      "codebook_usage": [0.5, 1.0, 0.25],
      "codebook_perplexity": [8.0, 9.0, 3.0],
      "definition": "as defined",
    },
    mulan={"text_to_audio": found, "audio_to_text": found},
    stages={"semantic": scores, "coarse": scores, "fine": scores},
    mcc={"matched": interval, "shuffled": interval, "difference": interval},
    samples=samples,
    fingerprints={"soundstream": "0123456789abcdef"},
  )


@pytest.fixture(name="written", scope="module")
def _written(tmp_path_factory):
  root = tmp_path_factory.mktemp("run")
  samples = []
  for index, prompt in enumerate(["slow <b>jazz</b> & soul", "marimba"]):
    name = f"samples/{index}.wav"
    files.write_wav(root / name, _tone(hz=440 * (index + 1)), _RATE)
    samples.append(
      {"file": name, "prompt": prompt, "seconds": 1.0, "seed": 70 + index}
    )
  clip = report.Reconstruction(
    "held-out clip", _tone(), {12: _tone(), 1: 0.5 * _tone()}, _RATE
  )
  curves = {
    "codec": {"train": [(1, 90.0), (500, 1.0)], "heldout": [(500, 1.5)]},
    "semantic": [(step, 5.0 - step / 1000) for step in range(2000)],
    "empty": {},
  }
  path = report.write_report(
    root / "report", _summary(samples), samples, curves, [clip]
  )
  return root, path, samples


def test_every_sample_and_number_is_on_the_page(written):
  root, path, samples = written
  page = _Page(path.read_text())
  assert not page.open
  for sample in samples:
    assert sample["prompt"] in page.text
    assert f"seed {sample['seed']}" in page.text
  for number in ("2.125", "0.777", "4,321", "−1.50", "0123456789abcdef"):
    assert number in page.text
  assert "Loss (nats per token)" in page.text
  assert page.tags.count("audio") == len(samples) + 3
  assert page.text.count("Frequency (Hz)") == len(samples) + 3


def test_the_folder_stands_alone(written):
  root, path, samples = written
  text = path.read_text()
  assert not re.search(r"https?:|//[a-z]|<script|@import", text)
  page = _Page(text)
  assert not page.unnamed
  assert len(set(page.ids)) == len(page.ids)
  played = set()
  for reference in page.references:
    if reference.startswith("#"):
      assert reference[1:] in page.ids
    elif not reference.startswith("data:"):
      assert (path.parent / reference).is_file()
      played.add(pathlib.Path(reference).name)
  on_disk = {file.name for file in (path.parent / "audio").iterdir()}
  assert played == on_disk
  for target in re.findall(r"url\(#([^)]*)\)", text):
    assert target in page.ids
  copied = path.parent / "audio" / "sample_00.wav"
  original = root / samples[0]["file"]
  assert copied.read_bytes() == original.read_bytes()


def test_codebook_counts_are_in_rising_order(written):
  text = _Page(written[1].read_text()).text
  places = [
    text.index(word) for word in ("Original", "1 codebook", "12 codebooks")
  ]
  assert places == sorted(places)


def test_no_marker_colour_is_left_and_both_schemes_are_there(written):
  text = written[1].read_text()
  assert "#0a0b0" not in text
  assert "prefers-color-scheme: dark" in text
  for variable in set(re.findall(r"var\((--\w+)\)", text)):
    assert text.count(f"{variable}:") == 2


def test_writing_again_replaces_old_audio(written):
  root, path, samples = written
  stale = path.parent / "audio" / "stale.wav"
  stale.write_bytes(b"")
  report.write_report(path.parent, _summary(samples), samples, {})
  assert not stale.exists()
  assert "Training curves" not in path.read_text()


def test_a_page_of_nothing_fails_every_criterion(tmp_path):
  path = report.write_report(tmp_path / "report", {}, [], {})
  text = path.read_text()
  assert "0 of 7" in text
  assert text.count('class="verdict fail"') == 7
  assert 'class="verdict pass"' not in text
  assert "nan" not in text


def test_a_missing_sample_is_named(tmp_path):
  sample = {"file": "samples/x.wav", "prompt": "p", "seconds": 1, "seed": 0}
  with pytest.raises(errors.UserError, match=r"samples/x\.wav"):
    report.write_report(tmp_path / "report", {}, [sample], {})


def test_long_curves_are_thinned_without_moving_them():
  points = [(step, 2.0 * step) for step in range(10_000)]
  thin = report_figures._thin([*points, (10_000, float("nan"))])
  assert len(thin) == report_figures._MAX_POINTS
  np.testing.assert_allclose(thin[:, 1], 2 * thin[:, 0])


def test_words_for_numbers():
  assert report_page.duration(59.94) == "59.9 s"
  assert report_page.duration(185) == "3 min 05 s"
  assert report_page.duration(7300) == "2 h 01 min"
  assert report_page.size(3 * 2**30) == "3.00 GiB"
  assert report_page.number(None) == report_page.number(float("nan")) == "–"
  assert report_page.percent(0.123) == "12.3 %"
