# SPDX-License-Identifier: Apache-2.0
"""Small listening tests, with audio or without, and raters who are known."""

import json
import threading
import time

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.cli import listen_server
from musiclm_jax.evaluation import (
  listening_answers,
  listening_build,
  listening_design,
  listening_files,
)
from musiclm_jax.systems import provenance

# Words that occur nowhere else, to look for in what raters get.
SYSTEMS = ("zyqtruth", "zyqcodec", "zyqmodel")
SECS = 0.6


def write_systems(folder, num_prompts, rates_hz=(16000, 8000, 8000)):
  """Folders of three systems: other rates, levels, channels and metadata."""
  folders = {}
  for number, (name, rate_hz) in enumerate(zip(SYSTEMS, rates_hz)):
    folders[name] = folder / f"made_by_{name}"
    folders[name].mkdir(parents=True)
    for index in range(num_prompts):
      length = round((SECS + 0.1 * number) * rate_hz)
      time_secs = np.arange(length) / rate_hz
      tone = np.sin(2 * np.pi * (200 + 50 * index + 7 * number) * time_secs)
      waveform = (0.1 + 0.3 * number) * tone.astype(np.float32)
      if number == 0:
        waveform = np.stack([waveform, waveform], -1)
      path = folders[name] / f"{index:03d}_{name}.wav"
      settings = {
        "prompt": f"text number {index}",
        "generated_by": provenance.GENERATED_BY,
        "bundle": name,
      }
      tags = provenance.tags(settings, settings["prompt"])
      files.write_wav(path, waveform, rate_hz, tags)
      path.with_suffix(".json").write_text(json.dumps(settings))
  return folders


def plan(folders, **changes):
  """A plan for `write_systems`; 2 raters of the same 6 comparisons."""
  values = {
    "folders": folders,
    "captions": {},
    "title": "A test",
    "question": "Which clip fits better?",
    "seconds": SECS,
    "sample_rate_hz": None,
    "lufs": -20.0,
    "num_raters": 2,
    "comparisons_per_rater": 6,
    "raters_per_comparison": 2,
    "num_checks": 2,
    "min_played_share": 1.0,
    "seed": 0,
  }
  return listening_build.Plan(**{**values, **changes})


def without_audio(shape, num_checks, seed=0):
  """A test and its key for scoring alone; clips have no files."""
  sheets, behind = [], {}
  for rater, questions in enumerate(listening_design.sheets(shape, seed)):
    items = []
    for index, question in enumerate(questions):
      name = f"r{rater}i{index}"
      items.append(
        listening_files.Item(name, f"text {question.prompt}", "", "")
      )
      behind[name] = listening_files.KeyItem(
        f"text {question.prompt}",
        SYSTEMS[question.first],
        SYSTEMS[question.second],
        False,
      )
    for index in range(num_checks):
      name = f"r{rater}c{index}"
      items.append(listening_files.Item(name, "text 0", "", ""))
      sides = (SYSTEMS[0], "") if index % 2 else ("", SYSTEMS[0])
      behind[name] = listening_files.KeyItem("text 0", *sides, True)
    sheets.append(tuple(items))
  test = listening_files.Test(
    "A test", "Which?", 10.0, 24000, 1.0, {}, tuple(sheets)
  )
  systems = SYSTEMS[: shape.num_systems]
  return test, listening_files.Key(test.fingerprint, systems, behind, {})


def simulate(test, key, prefer, passes=lambda rater: True):
  """A log of raters who answer as they are told; no person was asked.

  Args:
    test: with sheets.
    key: to it.
    prefer: of rater, text, system heard as A and as B, gives -2 to 2.
    passes: of rater, whether attention checks are answered right.
  """
  log = listening_answers.Log()
  for rater, sheet in enumerate(test.sheets):
    name = f"rater {rater}"
    log.sheets[name] = rater
    for item in sheet:
      behind = key.items[item.item]
      if behind.is_check:
        right = -2 if behind.first else 2
        value = right if passes(rater) else -right
      else:
        value = prefer(rater, behind.prompt, behind.first, behind.second)
      log.answers[name, item.item] = listening_answers.Answer(
        name, item.item, value, (10.0, 10.0), 25.0
      )
  return log


class Running:
  """A server of a test in a thread, as a context."""

  def __init__(self, folder, token=""):
    self._opened = listen_server.opened(folder, "127.0.0.1", 0, token)

  def __enter__(self):
    """The address, and the port."""
    self._server, self.address = self._opened.__enter__()
    self.port = self._server.server_address[1]
    self._thread = threading.Thread(
      target=self._server.serve_forever, args=(0.05,), daemon=True
    )
    self._thread.start()
    return self

  def __exit__(self, *problem):
    self._server.shutdown()
    self._thread.join(10)
    time.sleep(0.05)
    self._opened.__exit__(None, None, None)
