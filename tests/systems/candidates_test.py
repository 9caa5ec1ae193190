# SPDX-License-Identifier: Apache-2.0
"""What a generation is told and which samples are kept, on a tiny bundle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_bundle
import tokenizer_artifacts as small

from musiclm_jax.core import errors
from musiclm_jax.decoding import sampling
from musiclm_jax.systems import (
  candidates,
  musiclm,
  prompts,
  recordings,
  stage_sampling,
)

TEXTS = ["a slow piano piece", "loud brass march"]


@pytest.fixture(scope="module")
def system(tmp_path_factory):
  """Its semantic and coarse stage can be guided, the fine one cannot."""
  directory = small_bundle.write(tmp_path_factory.mktemp("b"), ("mulan",))
  return musiclm.MusicLM.load(directory)


def tune(seed=0, secs=3.0, rate_hz=small.RATE_HZ):
  return recordings.Recording(small.music(secs, seed), rate_hz, f"{seed}.wav")


def assert_same(codes, other):
  assert codes.keys() == other.keys()
  for name, array in codes.items():
    np.testing.assert_array_equal(array, other[name])


@pytest.fixture(scope="module")
def plain(system):
  return system.generate(TEXTS, 1.0, seed=[5, 6])


def test_one_candidate_is_the_plain_result(system, plain):
  made = candidates.generate(system, TEXTS, 1.0, [5, 6], num_candidates=1)
  for row, (one,) in enumerate(made):
    assert (one.index, one.score, one.seed) == (0, None, 5 + row)
    assert_same(one.codes, {k: v[row] for k, v in plain.codes.items()})
    np.testing.assert_array_equal(one.waveform, plain.waveform[row])


def test_the_best_are_kept_best_first_and_can_be_made_alone(system, plain):
  options = {"num_candidates": 3, "batch_size": 1, "keep": 2}
  made = candidates.generate(system, TEXTS, 1.0, [5, 6], **options)
  options |= {"batch_size": 2, "keep": 3}
  every = candidates.generate(system, TEXTS, 1.0, [5, 6], **options)
  embedded = system.mulan.embed_text(TEXTS)
  for row, (kept, full) in enumerate(zip(made, every)):
    # Neither the number kept nor the batch changes what is found.
    assert [c.index for c in kept] == [c.index for c in full[:2]]
    scores = [candidate.score for candidate in full]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 3
    assert sorted(c.index for c in full) == [0, 1, 2]
    seeds = {c.index: c.seed for c in full}
    assert seeds == {i: candidates.candidate_seed(5 + row, i) for i in range(3)}
    for candidate in full:
      audio = system.mulan.embed_audio(candidate.waveform[None], small.RATE_HZ)
      cosine = float(audio[0] @ embedded[row])
      assert candidate.score == pytest.approx(cosine, abs=1e-5)
    (first,) = (c for c in full if c.index == 0)
    assert_same(first.codes, {k: v[row] for k, v in plain.codes.items()})
  best = every[0][0]
  alone = system.generate(TEXTS[0], 1.0, seed=best.seed)
  assert_same(best.codes, {k: v[0] for k, v in alone.codes.items()})


def test_candidate_seeds_do_not_meet_those_of_neighbours():
  seeds = [
    candidates.candidate_seed(s, i) for s in range(200) for i in range(9)
  ]
  assert len(set(seeds)) == len(seeds)
  assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"keep": 0}, "keep=0"),
    ({"num_candidates": 2, "keep": 3}, "num_candidates=2"),
    ({"batch_size": 0}, "batch_size=0"),
    ({"seed": [1]}, "1 seeds given"),
  ],
)
def test_bad_choices_are_user_errors(system, options, message):
  with pytest.raises(errors.UserError, match=message):
    candidates.generate(system, TEXTS, 1.0, **options)


def test_filters_of_a_stage_act_on_that_stage(system, plain):
  configs = (1.0, 0.95, sampling.SamplingConfig(0.4, top_k=1))
  codes = system.generate(TEXTS, 1.0, [5, 6], configs).codes
  greedy = system.generate(TEXTS, 1.0, [5, 6], (1.0, 0.95, 0.0)).codes
  assert_same(codes, greedy)
  for name in ("mulan", "semantic"):
    np.testing.assert_array_equal(codes[name], plain.codes[name])
  same = codes["acoustic"] == plain.codes["acoustic"]
  assert same[..., :1].all() and not same[..., 1:].all()


def guided(guidance):
  return tuple(
    sampling.SamplingConfig(temperature, guidance=one)
    for temperature, one in zip(musiclm.TEMPERATURES, (guidance, guidance, 1.0))
  )


def test_guidance_of_an_item_does_not_depend_on_its_batch(system, plain):
  both = system.generate(TEXTS, 1.0, [5, 6], guided(3.0)).codes
  alone = system.generate(TEXTS[1], 1.0, 6, guided(3.0)).codes
  assert_same({k: v[1:] for k, v in both.items()}, alone)
  assert (both["semantic"] != plain.codes["semantic"]).any()


def test_guidance_that_is_no_guidance_changes_nothing(system, plain):
  assert_same(
    system.generate(TEXTS, 1.0, [5, 6], guided(1.0)).codes, plain.codes
  )
  # Told and not told are the same: twice the rows, and the same codes.
  alone = system.generate(
    TEXTS[0], 1.0, 5, guided(3.0), negative=TEXTS[0]
  ).codes
  assert_same(alone, {k: v[:1] for k, v in plain.codes.items()})


def test_a_stage_moves_away_from_nothing_or_from_what_is_not_wanted(system):
  stage = system.stages["semantic"]
  keys = jnp.stack([jax.random.key(2)] * 2)
  mulan = np.array([[[0, 1, 2]], [[7, 6, 5]]], np.int32)

  def made(guidance, negative=None):
    config = sampling.SamplingConfig(guidance=guidance)
    negative = None if negative is None else {"mulan": negative}
    return stage.generate_long(
      {"mulan": mulan}, 25, config, keys, negative=negative
    )

  told, unguided, guided = made(1.0), made(0.0), made(3.0)
  assert (told[0] != told[1]).any()
  # Without any weight the prompt does not count.
  np.testing.assert_array_equal(unguided[0], unguided[1])
  np.testing.assert_array_equal(made(3.0, mulan), told)
  other = made(3.0, mulan[::-1])
  assert len({x.tobytes() for x in (told[0], guided[0], other[0])}) == 3


def test_stages_without_condition_dropout_refuse_guidance(system):
  asked = [sampling.SamplingConfig(guidance=3.0)] * 3
  with pytest.raises(errors.UserError, match="guidance=3 of the fine stage"):
    system.generate(TEXTS[0], 1.0, 0, asked)
  with pytest.raises(errors.UserError, match="negative prompt needs guidance"):
    system.generate(TEXTS[0], 1.0, negative="drums")
  stages = system.stages
  assert stage_sampling.spread_guidance(3.0, stages) == (3.0, 3.0, 1.0)


def test_a_mixture_of_one_is_that_prompt(system, plain):
  mixed = [prompts.mix((0.3, text)) for text in TEXTS]
  assert_same(system.generate(mixed, 1.0, [5, 6]).codes, plain.codes)
  audio = tune()
  one = prompts.encode(system.mulan, [prompts.as_prompt(audio)])
  for weight in (0.1, 7.0):
    other = prompts.encode(system.mulan, [prompts.mix((weight, audio))])
    np.testing.assert_array_equal(one, other)


def test_an_audio_prompt_has_the_codes_of_that_audio(system):
  audio = tune(secs=3.5)
  expected = system.mulan.encode(audio.waveform[None], small.RATE_HZ)
  made = system.generate([TEXTS[0], audio], 1.0, [5, 6]).codes
  np.testing.assert_array_equal(made["mulan"][1:], expected)
  # The text beside it is what it is alone.
  alone = system.generate(TEXTS[0], 1.0, 5).codes
  assert_same({k: v[:1] for k, v in made.items()}, alone)


def test_mixtures_lie_between_their_parts_at_unit_length(system):
  audio = tune(3)
  parts = [prompts.as_prompt(TEXTS[0]), prompts.as_prompt(audio)]
  text_vector, audio_vector = prompts.embed(system.mulan, parts)
  cosines = []
  for share in (0.9, 0.5, 0.1):
    mixed = prompts.mix((share, TEXTS[0]), (1 - share, audio))
    (vector,) = prompts.embed(system.mulan, [mixed])
    expected = share * text_vector + (1 - share) * audio_vector
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(vector, expected, atol=1e-6)
    cosines.append(float(vector @ text_vector))
  assert cosines == sorted(cosines, reverse=True)
  # Only the ratio of weights counts.
  scaled = prompts.mix((9.0, TEXTS[0]), (1.0, audio))
  first = prompts.mix((0.9, TEXTS[0]), (0.1, audio))
  one, two = prompts.embed(system.mulan, [scaled, first])
  np.testing.assert_allclose(one, two, atol=1e-6)


def test_prompts_say_what_they_are():
  audio = tune(2)
  assert prompts.as_prompt("a flute").describe() == {"prompt": "a flute"}
  mixed = prompts.mix((0.7, "a flute"), (0.3, audio))
  assert mixed.label == "0.7 a flute, 0.3 2.wav"
  assert mixed.describe() == {
    "prompt_parts": [
      {"weight": 0.7, "text": "a flute"},
      {"weight": 0.3, "audio": "2.wav", "audio_sha256": audio.sha256},
    ]
  }
  assert audio.sha256 == tune(2).sha256 != tune(1).sha256


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: prompts.mix((0.0, "a flute")), "weight=0.0 of 'a flute'"),
    (lambda: prompts.mix((float("nan"), "a flute")), "weight=nan"),
    (lambda: prompts.mix((1.0, " ")), "prompt is ' '"),
    (lambda: prompts.mix(), "at least one"),
    (lambda: prompts.as_prompts(["ok", 7]), "prompt 1 is a int"),
    (lambda: tune(secs=0.9), "0.wav has 0.90 s"),
    (
      lambda: recordings.Recording(np.zeros(9000), 8000, "x.wav"),
      "x.wav is silent",
    ),
    (
      lambda: recordings.Recording(np.full((9000, 2), np.inf), 8000),
      "NaN or infinite",
    ),
  ],
)
def test_bad_prompts_are_user_errors(make, message):
  with pytest.raises(errors.UserError, match=message):
    make()
