# SPDX-License-Identifier: Apache-2.0
"""Stories, continuations and streams, by token equality, on a tiny system.

Codec and stages are real with random weights; MuLan and the semantic tokenizer
are made by hand.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_stages

from musiclm_jax.core import (
  artifacts,
  errors,
  rvq,
  stages,
  streams,
  unique_codes,
)
from musiclm_jax.decoding import sampling, tracks
from musiclm_jax.networks import soundstream
from musiclm_jax.partitioning import axes
from musiclm_jax.systems import (
  audio_prompt,
  audiolm,
  cascade,
  musiclm,
  stage_lm,
  stage_program,
  stage_tokens,
  story,
  streaming,
  tokenizers,
)

CODEC = soundstream.SoundStreamConfig(
  sample_rate_hz=60, channels=2, strides=(2, 3), dilations=(1,), kernel_size=3,
  code_dim=4, num_codebooks=3, codebook_size=8,
)  # fmt: skip
MULAN = streams.TokenStream("mulan", 4, 2)
SEMANTIC = streams.TokenStream("semantic", 6, 1, 5.0)
ACOUSTIC = streams.TokenStream("acoustic", 8, 3, 10.0)
STREAMS = (MULAN, SEMANTIC, ACOUSTIC)


class _Mulan:
  stream = MULAN
  codebooks = np.random.default_rng(5).normal(size=(2, 4, 3))

  def prompt_embeddings(self, texts):
    sums = [sum(map(ord, text)) for text in texts]
    drawn = [np.random.default_rng(one).normal(size=3) for one in sums]
    return np.stack([one / np.linalg.norm(one) for one in drawn])

  def quantize(self, embeddings):
    books = self.codebooks.astype(np.float32)
    return rvq.encode(embeddings.astype(np.float32), books)[:, None]

  def encode_text(self, texts):
    return self.quantize(self.prompt_embeddings(texts))

  def encode(self, waveform, sample_rate_hz):
    return self.quantize(np.tile(waveform.std(), (len(waveform), 3)))


class _Semantic:
  stream = SEMANTIC

  def encode(self, waveform, sample_rate_hz):
    per_frame = round(sample_rate_hz / 5)
    frames = -(-waveform.shape[1] // per_frame)
    padded = np.pad(
      waveform, ((0, 0), (0, frames * per_frame - waveform.shape[1]))
    )
    level = np.abs(padded.reshape(len(waveform), frames, per_frame)).sum(2)
    return (level * 7).astype(np.int32)[..., None] % 6


def _codec():
  network = soundstream.SoundStream(CODEC)
  shapes = axes.unbox(
    jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 6)))
  )
  generator = np.random.default_rng(0)

  def draw(x):
    scale = 2.0 * np.prod(x.shape[:-1]) ** -0.5 if x.ndim > 1 else 0.0
    return generator.normal(scale=scale, size=x.shape).astype(np.float32)

  arrays = jax.tree.map(draw, shapes)
  config = artifacts.config_to_dict(CODEC)
  return tokenizers.SoundStreamTokenizer(
    artifacts.Artifact("soundstream", config, arrays, "mark", {}, {})
  )


def _stage(spec):
  params = tiny_stages.make_params(spec, STREAMS)
  return stage_lm.StageLM(spec, STREAMS, tiny_stages.STACK, params)


FINE = stages.fine_stage(2, 3, 1.0)


@pytest.fixture(name="compile_lightly", scope="module", autouse=True)
def _compile_lightly():
  # Many small programs that run a few times: nearly all of it is XLA's time.
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(name="system", scope="module")
def _system(compile_lightly):
  return musiclm.MusicLM(
    _codec(),
    _Mulan(),
    _stage(stages.semantic_stage(2, 2.0)),
    _stage(stages.coarse_stage(2, 2, 1.0)),
    _stage(FINE),
    _Semantic(),
  )


@pytest.fixture(name="audio", scope="module")
def _audio():
  # 1.13 s: not a whole number of frames.
  waveform = np.random.default_rng(2).normal(size=68).astype(np.float32) / 4
  return audio_prompt.AudioPrompt(waveform, 60)


TOLD = story.parse(
  [{"at": 0, "text": "calm"}, {"at": 1.8, "text": "a loud band"}], "tale"
)


def _same(first, second, names=("semantic", "acoustic")):
  for name in names:
    np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("num_codebooks", [1, 2, 3])
def test_first_codebooks_are_made_without_the_stages_of_others(
  system, num_codebooks
):
  request = story.request(system, TOLD, 3.4, 5)
  whole = system.sample(request)
  fewer = system.with_codebooks(num_codebooks)
  assert ("fine" in fewer.stages_of(request)) == (num_codebooks == 3)
  codes = fewer.sample(request)
  made = codes["acoustic"].shape[-1]
  assert made == (3 if num_codebooks == 3 else 2)
  np.testing.assert_array_equal(
    codes["acoustic"], whole["acoustic"][..., :made]
  )
  np.testing.assert_array_equal(
    fewer.run(request).waveform,
    fewer.decode(whole["acoustic"], request.seconds),
  )


def test_story_of_one_prompt_is_the_prompt(system):
  told = story.parse([{"at": 0, "text": "calm"}])
  codes = system.sample(story.request(system, told, 3.4, 5))
  plain = system.generate("calm", 3.4, 5)
  _same(codes, plain.codes, ("mulan", "semantic", "acoustic"))


def test_story_changes_with_its_second_prompt_and_replays(system):
  first = system.sample(story.request(system, TOLD, 3.8, 6))
  _same(first, system.sample(story.request(system, TOLD, 3.8, 6)))
  assert first["mulan"].shape == (1, 2, 2)
  other = story.parse([{"at": 0, "text": "calm"}, {"at": 1.8, "text": "drums"}])
  changed = system.sample(story.request(system, other, 3.8, 6))
  semantic, coarse = (
    (first[name][..., :2] != changed[name][..., :2]).any((0, -1))
    for name in ("semantic", "acoustic")
  )
  # At 1.8 s begin semantic frame 9 and acoustic frame 18.
  assert not semantic[:9].any() and semantic[9:12].any()
  assert not coarse[:18].any() and coarse[18:22].any()


def test_transition_crosses_mulan_space():
  told = story.parse(
    {
      "transition_secs": 2,
      "prompts": [{"at": 0, "text": "calm"}, {"at": 4, "text": "drums"}],
    }
  )
  ends = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])

  class _Recorder(_Mulan):
    def quantize(self, embeddings):
      self.last = embeddings[0]
      return super().quantize(embeddings)

  mulan = _Recorder()
  scenes = story.scenes(told, ends, mulan, 3)
  assert scenes.cuts_secs == (4.0, 6.0)
  for secs, share in ((0, 0), (3.9, 0), (4.5, 0.25), (5, 0.5), (6, 1), (9, 1)):
    assert scenes.at(secs).shape == (3, 1, 2)
    mixed = np.array([1 - share, share, 0.0])
    expected = mixed / np.linalg.norm(mixed)
    np.testing.assert_allclose(mulan.last, expected, atol=1e-6)


@pytest.mark.parametrize(
  "text, message",
  [
    ("[]", "no prompt"),
    ("a flute", "expected a list"),
    ("- a flute", "prompt 1 is 'a flute'"),
    ("- {at: 0}", "no 'text'"),
    ("- {at: 0, txt: a}", "unknown field 'txt'; did you mean 'text'"),
    ("- {at: 1, text: a}", "prompt 1 is at 1: expected at 0"),
    ("- {at: 0, text: ' '}", "text ' '"),
    ("- {at: 0, text: 808}", "text 808"),
    ("- {at: soon, text: a}", "at: 'soon'"),
    ("- {at: .nan, text: a}", "at: nan"),
    ("- {at: yes, text: a}", "at: True"),
    ("- {at: 0, text: a}\n- {at: 0.5, text: b}", "at least 1 s after"),
    ("- {at: 0, text: a}\n- {at: -3, text: b}", "at: -3"),
    ("- {at: 0, text: a, transition_secs: 1}", "nothing comes before"),
    (
      "- {at: 0, text: a}\n- {at: 5, text: b, transition_secs: 4}\n"
      "- {at: 8, text: c}",
      "prompt 2 has transition_secs: 4: .*3 s later",
    ),
    ("- {at: 0, text: [", "YAML .line 1"),
    ("!!python/object/apply:os.system ['true']", "YAML"),
  ],
)
def test_bad_stories_are_user_errors(tmp_path, text, message):
  path = tmp_path / "story.yaml"
  path.write_text(text)
  with pytest.raises(errors.UserError, match=message):
    story.read(path)


def test_story_ends_before_the_item_does(system, tmp_path):
  with pytest.raises(errors.UserError, match="at 1.8: expected before the end"):
    story.request(system, TOLD, 1.5)
  with pytest.raises(errors.UserError, match="no story at"):
    story.read(tmp_path / "none.yaml")


def test_going_on_from_its_own_begin_gives_the_same_music(system):
  whole = system.generate("calm", 3.4, 7)
  begin = {name: whole.codes[name] for name in ("semantic", "acoustic")}
  request = cascade.Request(
    3.4,
    (7,),
    musiclm.TEMPERATURES,
    {"mulan": whole.codes["mulan"]},
    {
      "semantic": begin["semantic"][:, :4],
      "acoustic": begin["acoustic"][:, :5],
    },
  )
  _same(system.sample(request), whole.codes)


def test_continuation_keeps_the_codes_of_the_prompt(system, audio):
  given, secs = audio_prompt.encode(system, audio)
  assert secs == 1.0
  assert given["semantic"].shape == (1, 5, 1)
  assert given["acoustic"].shape == (1, 10, 3)
  made = system.run(audio_prompt.continuation(system, audio, 3.4, seed=1))
  told = system.run(
    audio_prompt.continuation(system, audio, 3.4, ["calm"], seed=1)
  )
  other = system.run(audio_prompt.continuation(system, audio, 3.4, seed=2))
  for result in (made, told, other):
    assert result.waveform.shape == (1, 204)
    for name, codes in given.items():
      kept = result.codes[name][:, : codes.shape[1]]
      np.testing.assert_array_equal(kept, codes)
  for result in (told, other):
    assert (result.codes["acoustic"] != made.codes["acoustic"]).any()
  # What is heard of the prompt is what the codec makes of its codes.
  np.testing.assert_allclose(
    made.waveform[:, :60],
    np.clip(system.codec.decode(given["acoustic"]), -1, 1),
    atol=1e-4,
  )


def test_resynthesis_keeps_the_semantic_codes(system, audio):
  codes = system.generate("calm", 4.0, 7).codes
  request = audio_prompt.from_semantic(
    system, codes["semantic"], {"mulan": codes["mulan"]}, 7
  )
  assert request.seconds == 4.0
  _same(system.sample(request), codes)
  made = system.run(audio_prompt.resynthesis(system, audio, 2.0, seed=3))
  given, _ = audio_prompt.encode(system, audio)
  assert made.waveform.shape == (1, 60)
  _same(made.codes, given, ["semantic"])
  assert (made.codes["acoustic"] != given["acoustic"]).any()


def test_bad_audio_prompts_are_user_errors(system, audio):
  with pytest.raises(errors.UserError, match="1.13333 s, seconds=1: expected"):
    audio_prompt.continuation(system, audio, 1.0)
  with pytest.raises(errors.UserError, match="0.17 s of audio"):
    audio_prompt.AudioPrompt(np.zeros(10), 60)
  with pytest.raises(errors.UserError, match="NaN"):
    audio_prompt.AudioPrompt(np.full(60, np.nan), 60)
  with pytest.raises(errors.UserError, match="no prompt"):
    audio_prompt._items(system, None, (), 0)


def _whole_and_pieces(system, request):
  whole = system.run(request)
  pieces = list(streaming.Stream(system, request))
  codes = np.concatenate([piece.acoustic_codes for piece in pieces], axis=1)
  np.testing.assert_array_equal(codes, whole.codes["acoustic"])
  waveform = np.concatenate([piece.waveform for piece in pieces], axis=1)
  np.testing.assert_allclose(waveform, whole.waveform, atol=1e-4)
  return pieces


def test_streams_are_the_whole(system, audio):
  pieces = _whole_and_pieces(system, system.request("calm", 3.4, 5))
  # Fine windows of 1 s behind coarse ones of which half is new.
  assert [len(piece.waveform[0]) for piece in pieces] == [60, 60, 60, 24]
  _whole_and_pieces(system, story.request(system, TOLD, 3.4, 6))
  pieces = _whole_and_pieces(
    system, audio_prompt.continuation(system, audio, 3.4, seed=1)
  )
  np.testing.assert_array_equal(
    pieces[0].acoustic_codes, audio_prompt.encode(system, audio)[0]["acoustic"]
  )


def test_first_piece_needs_one_window_of_each_stage(system, monkeypatch):
  calls = []
  generate = stage_lm.StageLM.generate

  def counted(self, *args, **kwargs):
    calls.append(self.spec.name)
    return generate(self, *args, **kwargs)

  monkeypatch.setattr(stage_lm.StageLM, "generate", counted)
  stream = streaming.Stream(system, system.request("calm", 20.0, 5))
  assert not calls
  held = []
  for index, piece in enumerate(stream):
    if index == 0:
      assert calls == ["semantic", "coarse", "fine"]
      assert piece.waveform.shape == (1, 60)
    held.append(stream.held_frames)
  # Two semantic windows and two coarse or fine ones, however long it is.
  assert max(held) <= 2 * 10 + 4 * 10
  assert len(calls) > 50


def test_tracks_forget_and_say_so():
  track = tracks.Track(9, np.arange(4)[None, :, None])
  track.append(np.arange(4, 6)[None, :, None])
  track.drop_before(2)
  assert (track.start, track.end, track.total_frames) == (2, 6, 9)
  assert track.take(3, 6).ravel().tolist() == [3, 4, 5]
  for span in ((1, 3), (5, 7)):
    with pytest.raises(ValueError, match=r"inside \[2, 6\)"):
      track.take(*span)


def test_seams_are_where_windows_begin(system):
  seams = dict(cascade.seam_secs(system, story.request(system, TOLD, 3.4)))
  assert seams["semantic"] == (1.8, 2.8)
  assert seams["coarse"] == (1.0, 1.5, 1.8, 2.3, 2.8, 3.3)
  assert seams["fine"] == (1.0, 2.0, 3.0)


def test_audiolm_knows_no_text(system, audio):
  semantic, coarse = (
    stages.semantic_stage(0, 2.0),
    stages.coarse_stage(0, 2, 1.0),
  )
  assert [s.stream for s in semantic.segments] == ["semantic"]
  assert [s.stream for s in coarse.segments] == ["semantic", "acoustic"]
  with pytest.raises(errors.UserError, match="'semantic' reads mulan"):
    audiolm.AudioLM(system.codec, *system.stages.values())
  alone = audiolm.AudioLM(
    system.codec,
    _stage(semantic),
    _stage(coarse),
    system.stages["fine"],
    _Semantic(),
  )
  made, other = (alone.generate(1, 2.0, seed) for seed in (3, 4))
  assert made.waveform.shape == (1, 120)
  assert (made.codes["acoustic"] != other.codes["acoustic"]).any()
  request = audio_prompt.continuation(alone, audio, 2.0, seed=3)
  assert [one.temperature for one in request.sampling] == [0.6, 0.8, 0.6]
  given, _ = audio_prompt.encode(alone, audio)
  codes = alone.sample(request)["acoustic"]
  np.testing.assert_array_equal(codes[:, :10], given["acoustic"])
  with pytest.raises(errors.UserError, match="no mulan"):
    audio_prompt.continuation(alone, audio, 2.0, ["drums"])


def _unique_stages(coarse_secs=2.0):
  return (
    _stage(stages.semantic_stage(0, 2.0, unique_consecutive=True)),
    _stage(stages.coarse_stage(0, 2, coarse_secs, unique_consecutive=True)),
  )


def test_windows_in_several_loops_have_the_same_codes(system, monkeypatch):
  semantic, coarse = _unique_stages()
  told = story.request(system, TOLD, 3.4, 5)

  def made():
    # A stage compiles its programs once: these are fresh.
    fresh = audiolm.AudioLM(
      system.codec,
      *(_stage(one.spec) for one in (semantic, coarse, system.stages["fine"])),
      _Semantic(),
    )
    plain = musiclm.MusicLM(
      system.codec,
      system.mulan,
      *(_stage(system.stages[name].spec) for name in system.stages),
      _Semantic(),
    )
    return fresh.generate(1, 2.0, 3).codes, plain.sample(told)

  one = made()
  monkeypatch.setattr(stage_program, "MIN_LOOP_STEPS", 3)
  assert stage_program.loop_parts(20) == (5, 5, 5, 5)
  for codes, expected in zip(made(), one):
    _same(codes, expected)


@pytest.fixture(name="unique", scope="module")
def _unique(system):
  return audiolm.AudioLM(
    system.codec, *_unique_stages(), system.stages["fine"], _Semantic()
  )


def _is_without_repeats(codes):
  """Of `[frames]`: no code twice, then perhaps padding to the end."""
  count = (codes >= 0).sum()
  kept = codes[:count]
  return count and (kept[1:] != kept[:-1]).all() and (codes[count:] < 0).all()


def test_codes_without_repeats_are_of_a_crop_and_rows_do_not_mix(unique):
  # Hot, so that some end early and some are as long as a crop.
  hot = (3.0, 0.8, 0.6)
  made = unique.generate(4, 2.0, 5, hot)
  semantic = made.codes["semantic"]
  assert semantic.shape == (4, 10, 1) and made.waveform.shape == (4, 120)
  assert all(_is_without_repeats(row) for row in semantic[..., 0])
  assert len(set((semantic[..., 0] >= 0).sum(1))) > 1
  for row in (0, 3):
    alone = unique.generate(1, 2.0, 5 + row, hot)
    for name, codes in alone.codes.items():
      np.testing.assert_array_equal(codes[0], made.codes[name][row])
  # Shorter items are told the same codes, and are their begin.
  short = unique.generate(4, 1.0, 5, hot)
  _same(short.codes, made.codes, ["semantic"])
  np.testing.assert_array_equal(
    short.codes["acoustic"], made.codes["acoustic"][:, :10]
  )
  _whole_and_pieces(unique, unique.request(1, 2.0, 5, hot))


def test_given_audio_goes_on_without_its_repeats(unique, audio):
  frames = audio.waveform[:24].reshape(2, 12).repeat([2, 3], axis=0)
  audio = audio_prompt.AudioPrompt(frames.ravel(), 60)
  given, _ = audio_prompt.encode(unique, audio)
  begin = unique_codes.collapse(given["semantic"], 6)[0]
  begin = begin[: unique_codes.lengths(begin)]
  assert len(begin) == 2
  request = audio_prompt.continuation(unique, audio, 2.0, seed=3)
  codes = unique.sample(request)
  np.testing.assert_array_equal(codes["semantic"][0, : len(begin)], begin)
  assert _is_without_repeats(codes["semantic"][0, :, 0])
  np.testing.assert_array_equal(codes["acoustic"][:, :10], given["acoustic"])
  # Given whole, nothing semantic is drawn; as it was made, it is made again.
  again = audio_prompt.from_semantic(unique, codes["semantic"], {}, 3)
  _same(unique.sample(again), codes, ["semantic"])
  heard = audio_prompt.resynthesis(unique, audio, seed=3)
  np.testing.assert_array_equal(
    unique.sample(heard)["semantic"][0, :, 0],
    np.pad(begin[:, 0], (0, 10 - len(begin)), constant_values=-1),
  )


def test_score_counts_the_end_and_not_what_follows(unique):
  stage = unique.stages["semantic"]
  codes = np.array([[1, 1, 4, 4, 4, 2, 2, 2, 5, 5]], np.int32)[..., np.newaxis]
  nats = stage.score({"semantic": codes})
  assert nats.shape == (1, 10, 1)
  assert (nats[0, :5] > 0).all() and not nats[0, 5:].any()
  kept = unique_codes.collapse(codes, 6)
  np.testing.assert_array_equal(stage.score({"semantic": kept}), nats)


def test_what_needs_time_is_refused_without_it(unique, system, audio):
  with pytest.raises(errors.UserError, match="seconds=2.5.*at most 2, a crop"):
    unique.generate(1, 2.5)
  request = unique.request(1, 2.0)
  scenes = tracks.Scenes((1.0,), lambda secs: None)
  told = dataclasses.replace(request, conditioning={"mulan": scenes})
  with pytest.raises(errors.UserError, match="'semantic'.*one prompt"):
    unique.sample(told)
  fine, plain = system.stages["fine"], _stage(stages.coarse_stage(0, 2, 2.0))
  first, other = _unique_stages(1.0)
  with pytest.raises(errors.UserError, match="crops of 1 s.*'semantic' of 2 s"):
    audiolm.AudioLM(system.codec, first, other, fine)
  with pytest.raises(errors.UserError, match="codes with repeats, .*without"):
    audiolm.AudioLM(system.codec, first, plain, fine)
  layout = stages.StageLayout(first.spec, first.streams)
  with pytest.raises(ValueError, match="prefix of 3 frames.*forced"):
    stage_tokens.rows(
      layout, {}, np.zeros((1, 3, 1), int), 7, sampling.SamplingConfig(), 1
    )
