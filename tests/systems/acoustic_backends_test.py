# SPDX-License-Identifier: Apache-2.0
"""Back ends inside a system and a bundle, beside and without the stages."""

import acoustic_models as small
import jax
import numpy as np
import pytest

from musiclm_jax.core import artifacts, errors, stages, streams
from musiclm_jax.decoding import masked, sampling, tracks
from musiclm_jax.systems import (
  acoustic_backends,
  bundle,
  cascade,
  continuous_batching,
  musiclm,
  stage_sampling,
  stage_windows,
  streaming,
  watched,
)


class _Codec:
  stream = small.ACOUSTIC
  sample_rate_hz = 80

  def decode(self, codes):
    return np.repeat(np.asarray(codes).sum(-1) / 20.0, 10, axis=-1)

  def stream_decoder(self, batch_size, chunk_frames):
    return _Decoder()


class _Decoder:
  push = _Codec.decode

  def flush(self):
    return np.zeros((2, 0), np.float32)


class _Mulan:
  stream = small.MULAN

  def encode_text(self, texts):
    codes = [[len(text) % 4, text.count("a") % 4] for text in texts]
    return np.array(codes, np.int32)[:, None]


class _Semantic(stage_windows.StageWindows):
  """A stage that counts, in place of one whose decoding would be compiled."""

  streams = {small.MULAN.name: small.MULAN, small.SEMANTIC.name: small.SEMANTIC}
  spec = stages.semantic_stage(2, 1.0)

  def generate(
    self, conditioning, prefix, num_frames, sampling, keys, first_frames=0,
    forced=None, negative=None, num_forced=None,
  ):  # fmt: skip
    known = 0 if prefix is None else prefix.shape[1]
    places = np.reshape(first_frames, (-1, 1)) + known + np.arange(num_frames)
    start = conditioning["mulan"][:, :, :1]
    return (start + places[:, :, None]) % 6


def system(**acoustic):
  return musiclm.MusicLM(
    _Codec(), _Mulan(), _Semantic(), None, None, acoustic=acoustic
  )


@pytest.fixture(scope="module")
def backends():
  storm = small.system_of(small.soundstorm_model())
  storm.schedule = masked.MaskedSchedule((2, 1, 1))
  return {
    "depthwise": small.system_of(small.depthwise_model()),
    "soundstorm": storm,
  }


@pytest.mark.parametrize("name", ["depthwise", "soundstorm"])
def test_a_back_end_makes_what_the_stages_would(backends, name):
  made = (
    system(**backends)
    .with_acoustic(name)
    .generate(["a piano", "drum"], 1.3, seed=[5, 6])
  )
  assert made.waveform.shape == (2, 104)
  assert np.isfinite(made.waveform).all()
  shapes = {stream: codes.shape for stream, codes in made.codes.items()}
  assert shapes == {
    "mulan": (2, 1, 2), "semantic": (2, 6, 1), "acoustic": (2, 11, 3),
  }  # fmt: skip
  # The back end was told the semantic codes and its own key.
  assert (made.codes["acoustic"][0] != made.codes["acoustic"][1]).any()


@pytest.mark.parametrize("name", ["depthwise", "soundstorm"])
def test_scenes_given_codes_and_streams_go_through_back_ends(backends, name):
  chosen = system(**backends).with_acoustic(name)
  given = np.array([[[1, 2, 3]] * 3, [[4, 0, 1]] * 3], np.int32)

  def request(*starts):
    scenes = tracks.Scenes(
      (1.0,), lambda secs: np.full((2, 1, 2), starts[secs > 1.0], np.int32)
    )
    return cascade.Request(
      2.5, (5, 6), (1.0,) * 3, {"mulan": scenes}, {"acoustic": given}
    )

  codes = chosen.sample(request(0, 3))["acoustic"]
  assert codes.shape == (2, 20, 3)
  np.testing.assert_array_equal(codes[:, :3], given)
  pieces = list(streaming.Stream(chosen, request(0, 3)))
  assert len(pieces) > 1
  streamed = np.concatenate([one.acoustic_codes for one in pieces], axis=1)
  np.testing.assert_array_equal(streamed, codes)
  other = chosen.sample(request(0, 2))["acoustic"]
  np.testing.assert_array_equal(other[:, :8], codes[:, :8])
  assert (other[:, 8:] != codes[:, 8:]).any()


@pytest.mark.parametrize("name", ["depthwise", "soundstorm"])
def test_items_of_a_back_end_share_batches(backends, name):
  chosen = system(**backends).with_acoustic(name)
  whole = {
    index: chosen.request("a piano", 1.0 + index, index) for index in (0, 1)
  }
  batcher = continuous_batching.Batcher(chosen, 2)
  requests = [(index, lambda index=index: whole[index]) for index in whole]
  made = dict(batcher.run(requests))
  for index, request in whole.items():
    for stream, codes in chosen.sample(request).items():
      np.testing.assert_array_equal(made[index].codes[stream], codes)


class _Recorder(watched.Watcher):
  """Remembers what it was told of."""

  def __init__(self):
    super().__init__(watched.Speed())
    self.seen = []

  def end(self, call):
    self.seen.append(call)
    super().end(call)


@pytest.mark.parametrize("name", ["depthwise", "soundstorm"])
def test_back_ends_are_watched_and_stopped(backends, name):
  chosen = system(**backends).with_acoustic(name)
  request = chosen.request(["a piano", "drum"], 1.3, [5, 6])
  recorder = _Recorder()
  told = watched.watch(chosen, recorder)
  calls = watched.calls(told, request)
  # 2 s: a window of 8 frames, then two that know half of theirs.
  of_back_end = [
    watched.Call(f"acoustic_{name}", steps, 2) for steps in (24, 12, 12)
  ]
  assert calls[-4:-1] == of_back_end
  assert calls == watched.calls(chosen, request)
  recorder.expect(calls)
  codes = told.sample(request)["acoustic"]
  assert recorder.seen == calls[:-1] and recorder.stage == watched.AUDIO
  np.testing.assert_array_equal(codes, chosen.sample(request)["acoustic"])
  assert recorder.seen == calls[:-1]

  class _Impatient(_Recorder):
    def end(self, call):
      self.is_stopped = call.stage != "semantic"
      super().end(call)

  impatient = _Impatient()
  with pytest.raises(watched.Stopped):
    watched.watch(chosen, impatient).sample(request)
  assert impatient.seen[-1] == of_back_end[0]


def test_windows_side_by_side_keep_what_is_given_of_each(backends):
  keys = jax.vmap(jax.random.key)(np.array([5, 6]))
  codes = small.codes(2, 2.0)
  given = codes["acoustic"][:, :10]
  for stage in backends.values():
    made = stage.generate_parallel(codes, 16, (1.0, 1.0), keys, given)
    assert made.shape == (2, 16, 3)
    np.testing.assert_array_equal(made[:, :10], given)
    again = stage.generate_parallel(codes, 16, (1.0, 1.0), keys, made[:, :8])
    assert (again[:, 8:] != made[:, 8:]).any()


def test_what_a_system_lacks_is_one_clear_error(backends):
  only = system(depthwise=backends["depthwise"])
  with pytest.raises(errors.UserError, match="no stage_coarse and stage_fine"):
    only.generate("ok", 1.0)
  with pytest.raises(errors.UserError) as error:
    only.with_acoustic("stages")
  assert str(error.value) == (
    "acoustic='stages': this bundle has no stage_coarse and stage_fine; it has "
    "what is needed for depthwise"
  )
  with pytest.raises(errors.UserError, match="no acoustic_soundstorm"):
    only.with_acoustic("soundstorm")
  with pytest.raises(errors.UserError, match="did you mean 'depthwise'"):
    only.with_acoustic("depthwize")


def test_a_back_end_that_was_not_trained_for_guidance_refuses_it(backends):
  only = system(depthwise=backends["depthwise"]).with_acoustic("depthwise")
  guided = stage_sampling.spread_guidance(2.0, only.stages_for(False))
  assert guided == (2.0, 2.0, 1.0)
  for guidance in ((1.0, 2.0, 1.0), (1.0, 1.0, 2.0)):
    how = [sampling.SamplingConfig(1.0, guidance=g) for g in guidance]
    with pytest.raises(errors.UserError, match="the acoustic_depthwise stage"):
      only.generate("ok", 1.0, sampling=how)


def test_streams_of_back_end_and_tokenizers_must_agree(backends):
  codec = _Codec()
  codec.stream = streams.TokenStream("acoustic", 7, 3, 8.0)
  with pytest.raises(errors.UserError, match="codebook_size=7"):
    musiclm.MusicLM(codec, _Mulan(), _Semantic(), None, None, acoustic=backends)


def test_bundles_hold_back_ends_beside_or_in_place_of_stages(tmp_path):
  parts, marks = {}, {}
  for name in bundle.TOKENIZERS:
    parts[name] = tmp_path / f"src_{name}"
    marks[name] = artifacts.save(parts[name], name, {}, {"w": np.ones(3)})
  config = {"tokenizers": marks}
  for name in (*bundle.STAGES, *bundle.ACOUSTIC):
    parts[name] = tmp_path / f"src_{name}"
    kind = "stage" if name in bundle.STAGES else name
    artifacts.save(parts[name], kind, config, {"w": np.ones(2)})
  assert set(bundle.write_bundle(tmp_path / "all", parts).paths) == set(parts)
  needed = set(bundle.required_parts(parts))
  assert needed == {"soundstream", "semantic", "stage_semantic"}
  del parts["stage_coarse"], parts["stage_fine"], parts["acoustic_soundstorm"]
  bundle.write_bundle(tmp_path / "few", parts)
  assert set(bundle.open_bundle(tmp_path / "few").paths) == set(parts)
  # Of other tokenizers.
  artifacts.save(parts["semantic"], "semantic", {}, {"w": np.zeros(3)})
  with pytest.raises(errors.UserError, match="acoustic_depthwise.*semantic"):
    bundle.write_bundle(
      tmp_path / "no", {k: v for k, v in parts.items() if k != "stage_semantic"}
      | {"stage_semantic": _stage(tmp_path, marks)},
    )  # fmt: skip


def _stage(folder, marks):
  """A semantic stage that fits any semantic tokenizer."""
  config = {"tokenizers": {"mulan": marks["mulan"]}}
  artifacts.save(folder / "other", "stage", config, {"w": np.ones(2)})
  return folder / "other"


def test_kinds_of_artefacts_are_parts_of_bundles():
  kinds = [one.KIND for one in acoustic_backends.BACKENDS.values()]
  assert tuple(kinds) == bundle.ACOUSTIC
