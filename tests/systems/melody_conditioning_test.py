# SPDX-License-Identifier: Apache-2.0
"""Generation with a melody, on tiny random stages and a tiny tokenizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import tokenizer_artifacts as small

from musiclm_jax.core import errors, stages, streams
from musiclm_jax.layers import transformer
from musiclm_jax.networks import decoder_lm
from musiclm_jax.systems import (
  melody_prompt,
  melody_tokenizer,
  musiclm,
  stage_lm,
)

RATE_HZ = small.RATE_HZ
MULAN = streams.TokenStream("mulan", 4, 2)
SEMANTIC = streams.TokenStream("semantic", 6, 1, 4.0)
ACOUSTIC = streams.TokenStream("acoustic", 5, 2, 4.0)
MELODY = streams.melody(8, 5)
STREAMS = (MULAN, SEMANTIC, ACOUSTIC, MELODY)
MELODY_SPEC = stages.semantic_melody_stage(2, 5)
SPECS = (
  stages.semantic_stage(2, 10.0),
  stages.coarse_stage(2, 1, 2.0),
  stages.fine_stage(1, 2, 2.0),
)
STACK = transformer.TransformerConfig(
  1, 16, 2, 16, relpos_buckets=8, relpos_max_distance=20
)


class _Codec:
  stream = ACOUSTIC
  sample_rate_hz = 80

  def decode(self, codes):
    return jnp.repeat(jnp.asarray(codes).sum(-1) / 10.0, 20, axis=-1)


class _Mulan:
  stream = MULAN

  def embed_text(self, texts):
    return np.array([[len(text) % 4, text.count("a") % 4] for text in texts])

  def quantize(self, embeddings):
    return embeddings[:, None].astype(np.int32)

  def encode_text(self, texts):
    return self.quantize(self.embed_text(texts))


def make_stage(spec):
  layout = stages.StageLayout(spec, {s.name: s for s in STREAMS})
  network = decoder_lm.DecoderLM(
    decoder_lm.DecoderLMConfig(
      STACK,
      layout.vocab_size,
      layout.num_target_levels,
      layout.target_stream.codebook_size,
    )
  )
  shapes = jax.eval_shape(
    lambda: network.init(
      jax.random.key(0),
      jnp.zeros((1, layout.length), jnp.int32),
      layout.shapes,
    )
  )["params"]
  params = small.random_values(shapes, 0)
  return stage_lm.StageLM(spec, STREAMS, STACK, params)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  directory = tmp_path_factory.mktemp("artifacts") / "melody"
  return melody_tokenizer.MelodyTokenizer.load(small.write_melody(directory))


@pytest.fixture(scope="module")
def system(tokenizer):
  return musiclm.MusicLM(
    _Codec(),
    _Mulan(),
    *(make_stage(spec) for spec in SPECS),
    melody=tokenizer,
    melody_stage=make_stage(MELODY_SPEC),
  )


def hum(secs, seed=0):
  return melody_prompt.Melody(small.music(secs, seed), RATE_HZ)


def test_codes_are_windows_of_each_second(tokenizer):
  melody = hum(12.0)
  codes = melody_prompt.encode(tokenizer, [melody], 10.0)
  assert codes.shape == (1, 7, 5)
  taken = streams.take_windows(tokenizer.stream, codes, 0.0, 3)
  expected = tokenizer.encode(melody.waveform[None, : 10 * RATE_HZ], RATE_HZ)
  np.testing.assert_array_equal(taken, expected)
  assert melody_prompt.encode(tokenizer, [melody], 2.0).shape == (1, 1, 5)


def test_melody_changes_what_is_made_and_text_still_does(system):
  def codes(prompt, melody):
    return system.generate(prompt, 10.0, 3, melody=melody).codes

  one, two = codes("a piano", hum(10.0, 0)), codes("a piano", hum(10.0, 1))
  assert one["melody"].shape == (1, 7, 5)
  assert (one["semantic"] != two["semantic"]).any()
  plain = codes("a piano", None)
  assert "melody" not in plain
  # Two tokens of text hardly move a random network: scores tell, not draws.
  stage = system.melody_stage
  known = {
    "melody": streams.take_windows(MELODY, one["melody"], 0.0, 3),
    "semantic": one["semantic"],
  }
  nats = [
    stage.score(known | {"mulan": np.full((1, 1, 2), code)}) for code in (0, 3)
  ]
  assert np.abs(nats[0] - nats[1]).max() > 1e-4
  again = codes("a piano", hum(10.0, 0))
  for name, array in one.items():
    np.testing.assert_array_equal(array, again[name])


def test_longer_music_follows_the_melody(system):
  first = small.music(15.0, 2)
  # Equal for 10 s: so are the codes of the first window of the stage.
  second = np.concatenate([first[: 10 * RATE_HZ], small.music(5.0, 3)])
  made = [
    system.generate(
      "a piano", 15.0, 4, melody=melody_prompt.Melody(waveform, RATE_HZ)
    )
    for waveform in (first, second)
  ]
  assert made[0].waveform.shape == (1, 15 * 80)
  one, two = (result.codes["semantic"][0, :, 0] for result in made)
  assert len(one) == 60
  np.testing.assert_array_equal(one[:40], two[:40])
  assert (one[40:] != two[40:]).any()


def test_short_melody_is_repeated(system):
  short = hum(5.0, 4)
  twice = melody_prompt.Melody(np.tile(short.waveform, 2), RATE_HZ)
  one, two = (
    system.generate("a piano", 10.0, 5, melody=melody).codes
    for melody in (short, twice)
  )
  np.testing.assert_array_equal(one["melody"], two["melody"])
  np.testing.assert_array_equal(one["semantic"], two["semantic"])


def test_each_item_has_its_own_melody_or_all_share_one(system):
  prompts, melodies = ["a piano", "drums"], [hum(10.0, 5), hum(11.0, 6)]
  both = system.generate(prompts, 4.0, [7, 8], melody=melodies)
  alone = system.generate("drums", 4.0, 8, melody=melodies[1])
  for name, codes in both.codes.items():
    np.testing.assert_array_equal(codes[1], alone.codes[name][0])
  shared = system.generate(prompts, 4.0, [7, 8], melody=melodies[1])
  for name, codes in shared.codes.items():
    np.testing.assert_array_equal(codes[1], alone.codes[name][0])
  with pytest.raises(errors.UserError, match="2 melodies given"):
    system.generate("drums", 4.0, 8, melody=melodies)


def test_a_system_without_the_stage_says_so(system):
  parts = (system.codec, system.mulan, *system.stages.values())
  plain = musiclm.MusicLM(*parts)
  with pytest.raises(errors.UserError, match="no stage_semantic_melody"):
    plain.generate("drums", 4.0, melody=hum(4.0))
  headless = musiclm.MusicLM(*parts, melody_stage=system.melody_stage)
  with pytest.raises(errors.UserError, match="no melody"):
    headless.generate("drums", 4.0, melody=hum(4.0))


@pytest.mark.parametrize(
  "waveform, message",
  [
    (np.zeros(RATE_HZ * 3), "hum.wav is silent"),
    (small.music(0.9, 0), "hum.wav has 0.90 s of audio: expected at least 1 s"),
  ],
)
def test_bad_melodies_are_refused_in_one_line(tmp_path, waveform, message):
  path = tmp_path / "hum.wav"
  soundfile.write(path, waveform, RATE_HZ)
  with pytest.raises(errors.UserError, match=message) as error:
    melody_prompt.read(path)
  assert "\n" not in str(error.value)


def test_stereo_of_any_rate_is_read(tmp_path, tokenizer):
  mono = small.music(5.0, 8)
  soundfile.write(tmp_path / "hum.flac", np.stack([mono] * 2, -1), RATE_HZ)
  melody = melody_prompt.read(tmp_path / "hum.flac")
  assert melody.secs == pytest.approx(5.0)
  codes = melody_prompt.encode(tokenizer, [melody], 4.0)
  assert codes.shape == (1, 1, 5)
