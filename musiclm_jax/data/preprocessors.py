# SPDX-License-Identifier: Apache-2.0
"""Seqio preprocessors: whole clips or codes in, one training crop out.

Everything random is drawn from the example's `crop_seed`, a hash of the run's
seed and the position in the run, never from the order of calls.
"""

import math
import zlib
from collections.abc import Mapping

import numpy as np
import seqio
import tensorflow as tf

from musiclm_jax.core import rvq, stages, vocabularies
from musiclm_jax.core import streams as streams_lib
from musiclm_jax.data import features, token_cache

_SILENT_PEAK = 1e-4  # -80 dBFS: noise below it is not scaled up.

Example = dict[str, tf.Tensor]


def _draw_int(example: Mapping[str, tf.Tensor], name: str, count) -> tf.Tensor:
  """Uniform int32 in `[0, count)`, a function of (crop_seed, name)."""
  return tf.random.stateless_uniform(
    [], _named_seed(example, name), 0, count, tf.int32, alg="philox"
  )


def _philox(counter: list[np.ndarray], key: list[np.ndarray]) -> list:
  """Ten rounds of Philox4x32 on uint64 arrays that hold 32-bit words."""
  word = np.uint64(0xFFFFFFFF)
  half = np.uint64(32)
  for _ in range(10):
    first = counter[0] * np.uint64(0xD2511F53)
    second = counter[2] * np.uint64(0xCD9E8D57)
    counter = [
      (second >> half) ^ counter[1] ^ key[0],
      second & word,
      (first >> half) ^ counter[3] ^ key[1],
      first & word,
    ]
    key = [
      key[0] + np.uint64(0x9E3779B9) & word,
      key[1] + np.uint64(0xBB67AE85) & word,
    ]
  return counter


def draw_ints(
  crop_seeds: np.ndarray, name: str, counts: np.ndarray
) -> np.ndarray:
  """`_draw_int` of many examples at once, without TensorFlow.

  Args:
    crop_seeds: not negative, int `[examples, 2]`.
    name: of the draw.
    counts: positive int `[examples]`.

  Returns:
    int64 `[examples]`, equal to what `tf.random.stateless_uniform` gives.
  """
  seeds = crop_seeds.astype(np.uint64)
  mark = np.uint64(zlib.crc32(name.encode()) & 0x7FFFFFFF)
  zero = np.zeros(len(seeds), np.uint64)
  # TensorFlow first scrambles the seed by a fixed key.
  mixed = _philox(
    [seeds[:, 0] ^ mark, zero, seeds[:, 1], zero],
    [zero + np.uint64(0x3EC8F720), zero + np.uint64(0x02461E29)],
  )
  drawn = _philox([zero, zero, mixed[2], mixed[3]], [mixed[0], mixed[1]])[0]
  return (drawn % counts.astype(np.uint64)).astype(np.int64)


def _named_seed(example: Mapping[str, tf.Tensor], name: str) -> tf.Tensor:
  mark = zlib.crc32(name.encode()) & 0x7FFFFFFF
  return tf.bitwise.bitwise_xor(
    example[features.CROP_SEED], tf.constant([mark, 0], tf.int32)
  )


@seqio.map_over_dataset
def crop_waveform(example: Example, num_samples: int) -> Example:
  """Takes a random crop; a shorter clip is padded with zeros at its end.

  Args:
    example: `waveform` float32 `[samples]` or `[samples, channels]`.
    num_samples: length of the crop.

  Returns:
    The example with `waveform` `[num_samples]` (and channels) and
    `num_samples`, how many of them are real.
  """
  waveform = example["waveform"]
  total = tf.shape(waveform)[0]
  start = _draw_int(example, "crop", tf.maximum(total - num_samples, 0) + 1)
  crop = waveform[start : start + num_samples]
  num_real = tf.shape(crop)[0]
  others = [[0, 0]] * (crop.shape.rank - 1)
  crop = tf.pad(crop, [[0, num_samples - num_real], *others])
  crop.set_shape([num_samples, *waveform.shape[1:]])
  return {**example, "waveform": crop, "num_samples": num_real}


@seqio.map_over_dataset
def normalize_peak(example: Example, peak: float) -> Example:
  """Scales the crop so that its largest magnitude is `peak`.

  Channels get the same gain, so sounds stay where they are between them.
  """
  waveform = example["waveform"]
  found = tf.reduce_max(tf.abs(waveform))
  gain = tf.where(found > _SILENT_PEAK, peak / found, 1.0)
  return {**example, "waveform": waveform * gain}


@seqio.map_over_dataset
def swap_channels(example: Example, rate: float) -> Example:
  """Mirrors a share `rate` of crops `[samples, channels]`: left to right."""
  drawn = tf.random.stateless_uniform(
    [], _named_seed(example, "swap"), alg="philox"
  )
  waveform = example["waveform"]
  mirrored = tf.where(drawn < rate, waveform[:, ::-1], waveform)
  return {**example, "waveform": mirrored}


@seqio.map_over_dataset
def random_gain(example: Example, min_db: float, max_db: float) -> Example:
  """Scales the crop by a gain uniform in decibels, then clips to [-1, 1].

  Channels get the same gain.
  """
  gain_db = tf.random.stateless_uniform(
    [], _named_seed(example, "gain"), min_db, max_db, alg="philox"
  )
  waveform = example["waveform"] * tf.pow(10.0, gain_db / 20.0)
  return {**example, "waveform": tf.clip_by_value(waveform, -1.0, 1.0)}


@seqio.map_over_dataset
def tokenize_caption(
  example: Example,
  vocabulary: vocabularies.TextVocabulary,
  text_length: int,
) -> Example:
  """Adds `text_tokens` int32 `[text_length]` of one of the captions."""
  captions = example["captions"]
  chosen = _draw_int(example, "caption", tf.size(captions))

  def encode(text: bytes) -> np.ndarray:
    return vocabulary.encode(text.decode(), text_length)

  tokens = tf.numpy_function(encode, [captions[chosen]], tf.int32)
  tokens.set_shape([text_length])
  return {**example, "text_tokens": tokens}


class StageCropper:
  """Cuts the same span of audio out of all streams of a clip."""

  def __init__(
    self,
    layout: stages.StageLayout,
    config: token_cache.TokenCacheConfig,
    mulan_codebooks: np.ndarray | None,
  ):
    """Prepares crops of a stage.

    Args:
      layout: gives the number of frames of each stream.
      config: of the token cache.
      mulan_codebooks: float32 `[codebooks, codebook_size, embedding]`.
    """
    self._config = config
    self._codebooks = mulan_codebooks
    self._squares = None
    if mulan_codebooks is not None:
      self._squares = rvq.squares(mulan_codebooks)
    self.grid_hz = streams_lib.grid_hz(
      {s.name: s for s in config.streams if not s.has_windows}
    )
    segments = layout.spec.segments
    self._frames = {
      segment.stream: layout.segment_frames(index)
      for index, segment in enumerate(segments)
    }
    self.stream_names = tuple(self._frames)
    self._crop_grid = round(layout.secs * self.grid_hz)
    named = [config.stream(name) for name in self.stream_names]
    self._windowed = [stream for stream in named if stream.has_windows]
    # Windows of a crop begin with it, so it begins where one is stored.
    strides = [round(s.stride_secs * self.grid_hz) for s in self._windowed]
    self._start_step = math.lcm(*strides)
    timed = [s.name for s in named if s.frame_rate_hz and not s.has_windows]
    # Frames of each timed stream per grid frame.
    self._factors = {
      name: round(config.stream(name).frame_rate_hz / self.grid_hz)
      for name in timed
    }

  def num_starts(self, num_frames: Mapping[str, int]) -> int:
    """Possible crop starts of a clip, at least 1.

    They lie on the grid that all streams share; with a melody stream, on
    whole seconds.

    Args:
      num_frames: frames of each timed stream of the stage.
    """
    spare = max(self._num_grid(num_frames) - self._crop_grid, 0)
    return spare // self._start_step + 1

  def _num_grid(self, num_frames: Mapping[str, int]) -> int:
    return min(
      num_frames[name] // factor for name, factor in self._factors.items()
    )

  def crop(
    self, arrays: Mapping[str, np.ndarray], start: int
  ) -> dict[str, np.ndarray]:
    """Codes of the crop that begins at the possible start `start`.

    Args:
      arrays: as in `token_cache.CachedClip`.
      start: below `num_starts`.

    Returns:
      int32 `[frames, codebooks]` by stream name, -1 where the clip has ended.
    """
    start *= self._start_step
    frames = {name: len(arrays[name]) for name in self._factors}
    end = min(start + self._crop_grid, self._num_grid(frames))
    out = {}
    for name, factor in self._factors.items():
      codes = arrays[name]
      padded = np.full((self._frames[name], codes.shape[1]), -1, np.int32)
      piece = codes[start * factor : end * factor][: len(padded)]
      padded[: len(piece)] = piece
      out[name] = padded
    for stream in self._windowed:
      out[stream.name] = streams_lib.take_windows(
        stream,
        arrays[stream.name],
        start / self.grid_hz,
        self._frames[stream.name],
      )
    if token_cache.MULAN in self._frames:
      out[token_cache.MULAN] = token_cache.mulan_codes(
        arrays[token_cache.EMBEDDINGS],
        self._codebooks,
        start / self.grid_hz,
        end / self.grid_hz,
        self._config,
        self._squares,
      )
    return out


@seqio.map_over_dataset
def crop_codes(example: Example, cropper: StageCropper) -> Example:
  """Takes a random crop on the grid shared by all streams.

  Args:
    example: codes `[frames, codebooks]` by stream, and `mulan_embeddings`.
    cropper: of the stage.

  Returns:
    The bookkeeping features and the cropped codes, -1 on padding.
  """
  inputs = [name for name in example if name not in features.BOOKKEEPING]
  names = cropper.stream_names

  def starts(*lengths: np.ndarray) -> np.ndarray:
    frames = {name: int(length) for name, length in zip(inputs, lengths)}
    return np.int32(cropper.num_starts(frames))

  lengths = [tf.shape(example[name])[0] for name in inputs]
  count = tf.numpy_function(starts, lengths, tf.int32)
  start = _draw_int(example, "crop", tf.reshape(count, []))

  def crop(start: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
    cropped = cropper.crop(dict(zip(inputs, values)), int(start))
    return [cropped[name] for name in names]

  values = tf.numpy_function(
    crop, [start, *(example[name] for name in inputs)], [tf.int32] * len(names)
  )
  out = {name: example[name] for name in features.BOOKKEEPING}
  for name, value in zip(names, values):
    value.set_shape([None, None])
    out[name] = value
  return out
