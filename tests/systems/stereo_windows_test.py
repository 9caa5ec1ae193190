# SPDX-License-Identifier: Apache-2.0
"""Windows of two channels: for the codec both, for the others their mean."""

import jax
import numpy as np
import pytest
import tokenizer_artifacts as small

from musiclm_jax.core import artifacts
from musiclm_jax.systems import tokenizers, window_programs

RATE_HZ = small.RATE_HZ


@pytest.fixture(scope="module")
def artifact_dir(tmp_path_factory):
  root = small.write(tmp_path_factory.mktemp("artifacts"))
  small.write_codec(root / "stereo", num_channels=2)
  return root


def _codes(program, audio):
  """What the program gives for a waveform, row by row."""
  cut = program.cut(audio)
  apply = jax.jit(program.apply)
  rows = [
    np.asarray(apply(program.weights, {k: v[None] for k, v in row.items()}))[0]
    for _, row in cut.rows
  ]
  return cut.join(rows)


def test_windows_of_two_channels_give_the_codes_of_the_whole(artifact_dir):
  program = window_programs.AcousticProgram(
    artifacts.load(artifact_dir / "stereo", "soundstream"), 1.0
  )
  codec = tokenizers.SoundStreamTokenizer.load(artifact_dir / "stereo")
  sides = [small.music(2.5, seed) for seed in (0, 1)]
  wide, narrow = np.stack(sides, -1), np.stack(sides[:1] * 2, -1)
  found = _codes(program, window_programs.Audio(wide, RATE_HZ))
  assert len(program.windows.plan(len(found))) > 1
  np.testing.assert_array_equal(found, codec.encode(wide[None])[0])
  # Mono is the same in both channels, and not what stereo is.
  doubled = _codes(program, window_programs.Audio(sides[0], RATE_HZ))
  np.testing.assert_array_equal(doubled, codec.encode(narrow[None])[0])
  assert not np.array_equal(doubled, found)
  sound = codec.decode(found[None])
  assert sound.shape == (1, len(found) * 160, 2)


def test_the_others_hear_the_mean_of_the_channels(artifact_dir):
  _, semantic, mulan = window_programs.load(artifact_dir, 1.0, 2.0, 0.4)
  sides = np.stack([small.music(4.5, seed) for seed in (2, 3)], -1)
  for program in (semantic, mulan):
    wide = program.cut(window_programs.Audio(sides, RATE_HZ)).rows
    mono = program.cut(window_programs.Audio(sides.mean(-1), RATE_HZ)).rows
    assert len(wide) == len(mono) > 1
    for (_, one), (_, two) in zip(wide, mono):
      np.testing.assert_array_equal(one["waveform"], two["waveform"])
