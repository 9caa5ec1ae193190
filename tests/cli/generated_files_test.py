# SPDX-License-Identifier: Apache-2.0
"""Which finished files a job may keep, by what their sidecars say."""

import json
import types

import acoustic_models as small
import numpy as np
import pytest

from musiclm_jax.cli import bulk, generated_files, generation, jobs
from musiclm_jax.core import errors
from musiclm_jax.decoding import masked, sampling
from musiclm_jax.systems import cascade, provenance

LEVELS = small.ACOUSTIC.num_codebooks


@pytest.fixture(name="storm", scope="module")
def _storm():
  return small.system_of(small.soundstorm_model())


@pytest.fixture(name="item")
def _item(tmp_path):
  paths = (tmp_path / "a.wav",)
  return generated_files.Item(None, "a flute", 3, 1.0, paths)


def settings_of(item, storm, acoustic="soundstorm"):
  """What the generate job says of an item."""
  system = cascade.Cascade(
    types.SimpleNamespace(stream=small.ACOUSTIC, sample_rate_hz=80),
    {
      name: types.SimpleNamespace(weights="float32")
      for name in ("semantic", "coarse", "fine")
    },
    acoustic={"soundstorm": storm},
  ).with_acoustic(acoustic)
  job = jobs.GenerateJob(bundle="b", acoustic=acoustic)
  how = (sampling.SamplingConfig(),) * 3
  return generation.all_settings([item], job, system, how, {})[item]


def write(item, settings):
  made = types.SimpleNamespace(waveform=np.zeros(8, np.float32), score=None)
  generated_files.write(item.paths[0], made, 80, item.label, settings)


def test_a_sound_says_in_which_passes_its_codes_were_made(item, storm):
  settings = settings_of(item, storm)
  schedule = {"passes": [16, 1, 1], "choice_noise": 4.5, "greedy_levels": []}
  assert settings["acoustic"] == "soundstorm"
  assert settings["acoustic_decoding"] == schedule
  write(item, settings)
  found = provenance.read_sidecar(item.paths[0])
  assert found["acoustic_decoding"] == schedule
  assert provenance.read(item.paths[0])["acoustic_decoding"] == schedule
  folder = item.paths[0].parent
  bulk.write_manifest(folder, [item], {item: settings})
  (line,) = (folder / bulk.MANIFEST).read_text().splitlines()
  assert json.loads(line)["acoustic_decoding"] == schedule
  # The stages know no passes.
  assert "acoustic_decoding" not in settings_of(item, storm, "stages")


def test_other_passes_make_a_file_anew(item, storm, monkeypatch):
  drawn = settings_of(item, storm)
  write(item, drawn)
  assert generated_files.is_done(item, drawn)
  monkeypatch.setattr(storm, "schedule", masked.published(LEVELS))
  published = settings_of(item, storm)
  assert published["acoustic_decoding"]["greedy_levels"] == [1, 2]
  assert not generated_files.is_done(item, published)
  with pytest.raises(errors.UserError, match="made anew with other settings"):
    bulk.write_manifest(item.paths[0].parent, [item], {item: published})


def test_a_file_that_does_not_say_its_passes_is_made_anew(item, storm):
  settings = settings_of(item, storm)
  old = {k: v for k, v in settings.items() if k != "acoustic_decoding"}
  write(item, old)
  assert not generated_files.is_done(item, settings)
  write(item, settings)
  assert generated_files.is_done(item, settings)
