# SPDX-License-Identifier: Apache-2.0
"""Seqio feature converters: task features in, model inputs out.

The only place where the features of a task become what a trainable reads.
"""

from collections.abc import Mapping

import numpy as np
import seqio
import tensorflow as tf

from musiclm_jax.core import stages
from musiclm_jax.data import features

_Spec = seqio.FeatureConverter.FeatureSpec
_BOOKKEEPING = {
  features.EXAMPLE_IDS: _Spec(dtype=tf.int64, rank=0),
  features.EXAMPLE_WEIGHTS: _Spec(dtype=tf.float32, rank=0),
}


class WaveformConverter(seqio.FeatureConverter):
  """Crops of audio for the codec and w2v-BERT: `waveform`, `num_samples`."""

  TASK_FEATURES = {
    "waveform": _Spec(dtype=tf.float32),
    "num_samples": _Spec(dtype=tf.int32, rank=0),
    **_BOOKKEEPING,
  }
  MODEL_FEATURES = TASK_FEATURES
  PACKING_FEATURE_DTYPES = None

  def __init__(self, num_channels: int = 1):
    """Converts crops `[samples]`, or `[samples, channels]` of more than one.

    Args:
      num_channels: of the waveforms.
    """
    if num_channels > 1:
      waveform = _Spec(dtype=tf.float32, rank=2)
      self.TASK_FEATURES = {**self.TASK_FEATURES, "waveform": waveform}
      self.MODEL_FEATURES = self.TASK_FEATURES
    super().__init__(pack=False)

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    names = list(self.MODEL_FEATURES)
    return ds.map(lambda example: {name: example[name] for name in names})

  def get_model_feature_lengths(
    self, task_feature_lengths: Mapping[str, int]
  ) -> Mapping[str, int]:
    return dict(task_feature_lengths)


class CaptionConverter(WaveformConverter):
  """Crops of audio with text for MuLan: also `text_tokens`."""

  TASK_FEATURES = {
    **WaveformConverter.TASK_FEATURES,
    "text_tokens": _Spec(dtype=tf.int32),
  }
  MODEL_FEATURES = TASK_FEATURES


class StageConverter(seqio.FeatureConverter):
  """Codes by stream to the inputs, targets and weights of a decoder.

  `decoder_target_tokens` is the flat sequence of the layout;
  `decoder_input_tokens` is the same behind BOS, without the last token;
  `decoder_loss_weights` is 1 on target tokens that are not padding.

  Packed, several examples whose clips are shorter than the crop share a row,
  one behind the other without their padding; `decoder_segment_ids` tells them
  apart, from 1 on (0: padding). What does not fit into the row is cut off.
  """

  PACKING_FEATURE_DTYPES = None

  def __init__(self, layout: stages.StageLayout, num_packed: int = 1):
    """Converts codes to sequences of `layout`.

    Args:
      layout: of a row.
      num_packed: examples in a row.
    """
    if num_packed < 1:
      raise ValueError(f"num_packed={num_packed}: expected >= 1")
    if num_packed > 1 and not layout.spec.is_timed:
      raise ValueError(
        f"num_packed={num_packed}: expected 1 for codes without repeats, which "
        "are padded to a crop"
      )
    self._layout = layout
    self.num_packed = num_packed
    names = [segment.stream for segment in layout.spec.segments]
    self._streams = list(dict.fromkeys(names))
    self.TASK_FEATURES = {
      **{name: _Spec(dtype=tf.int32, rank=2) for name in self._streams},
      **_BOOKKEEPING,
    }
    self.MODEL_FEATURES = {
      "decoder_input_tokens": _Spec(dtype=tf.int32),
      "decoder_target_tokens": _Spec(dtype=tf.int32),
      "decoder_loss_weights": _Spec(dtype=tf.float32),
      **_BOOKKEEPING,
    }
    if num_packed > 1:
      self.MODEL_FEATURES |= {
        "decoder_segment_ids": _Spec(dtype=tf.int32),
        features.EXAMPLE_IDS: _Spec(dtype=tf.int64),
        features.EXAMPLE_WEIGHTS: _Spec(dtype=tf.float32),
      }
    super().__init__(pack=False)

  def encode(self, *codes: np.ndarray) -> list[np.ndarray]:
    """Inputs, targets and weights, each `[..., length]`.

    Args:
      *codes: of each stream, int32 `[..., frames, codebooks]`.
    """
    tokens = self._layout.encode(dict(zip(self._streams, codes)))
    bos = np.full_like(tokens[..., :1], stages.BOS_ID)
    inputs = np.concatenate([bos, tokens[..., :-1]], axis=-1)
    weights = (tokens != stages.PAD_ID).astype(np.float32)
    weights[..., : self._layout.target_start] = 0.0
    return [inputs, tokens, weights]

  def encode_packed(
    self, example_weights: np.ndarray, *codes: np.ndarray
  ) -> list[np.ndarray]:
    """Inputs, targets, weights and segment ids of one row, each `[length]`.

    Args:
      example_weights: float32 `[examples]`, of each example's loss.
      *codes: of each stream, int32 `[examples, frames, codebooks]`.
    """
    layout = self._layout
    inputs, targets, ids = np.zeros((3, layout.length), np.int32)
    weights = np.zeros(layout.length, np.float32)
    position = 0
    for number, weight in enumerate(example_weights):
      example = dict(zip(self._streams, (array[number] for array in codes)))
      conditioning, target, skip = self._fit(example, position)
      if not len(target):
        continue
      tokens = np.concatenate([conditioning, target])
      row = slice(position + skip, position + skip + len(tokens))
      targets[row] = tokens
      inputs[row] = [stages.BOS_ID, *tokens[:-1]]
      ids[row] = number + 1
      weights[row.stop - len(target) : row.stop] = weight
      position = row.stop
    return [inputs, targets, weights, ids]

  def _fit(
    self, example: Mapping[str, np.ndarray], position: int
  ) -> tuple[np.ndarray, np.ndarray, int]:
    """As much of an example as fits behind `position`.

    Returns:
      Conditioning and target tokens, and how many positions to leave empty
      before them: targets of a level stand where they stand in the layout,
      modulo the number of levels, so that each has its own output kernel.
    """
    layout, target = self._layout, self._layout.spec.target
    levels = layout.num_target_levels
    real = example[target.stream][:, target.first_level] >= 0
    for frames in range(int(real.sum()), 0, -1):
      parts = []
      for index, segment in enumerate(layout.spec.segments):
        whole = layout.segment_frames(index)
        # Streams without frames are one frame, whatever the duration.
        share = -(-frames * whole // layout.num_target_frames)
        stream = layout.streams[segment.stream]
        if stream.has_windows:
          share = stream.num_frames(frames / layout.target_stream.frame_rate_hz)
        codes = example[segment.stream][:share]
        parts.append(layout.encode_segment(index, codes))
      conditioning = np.concatenate([np.zeros(0, np.int32), *parts[:-1]])
      skip = (layout.target_start - position - len(conditioning)) % levels
      tokens = len(conditioning) + len(parts[-1])
      if position + skip + tokens <= layout.length:
        return conditioning, parts[-1], skip
    return np.zeros(0, np.int32), np.zeros(0, np.int32), 0

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    if self.num_packed > 1:
      return self._convert_packed(ds)

    def convert(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
      inputs, targets, weights = tf.numpy_function(
        self.encode,
        [example[name] for name in self._streams],
        [tf.int32, tf.int32, tf.float32],
      )
      for value in (inputs, targets, weights):
        value.set_shape([self._layout.length])
      return {
        "decoder_input_tokens": inputs,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": weights * example[features.EXAMPLE_WEIGHTS],
        **{name: example[name] for name in _BOOKKEEPING},
      }

    return ds.map(convert)

  def _convert_packed(self, ds: tf.data.Dataset) -> tf.data.Dataset:
    names = (
      "decoder_input_tokens",
      "decoder_target_tokens",
      "decoder_loss_weights",
      "decoder_segment_ids",
    )

    def convert(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
      values = tf.numpy_function(
        self.encode_packed,
        [
          example[features.EXAMPLE_WEIGHTS],
          *(example[name] for name in self._streams),
        ],
        [tf.int32, tf.int32, tf.float32, tf.int32],
      )
      for value in values:
        value.set_shape([self._layout.length])
      return {
        **dict(zip(names, values)),
        **{name: example[name] for name in _BOOKKEEPING},
      }

    return ds.batch(self.num_packed, drop_remainder=True).map(convert)

  def get_model_feature_lengths(
    self, task_feature_lengths: Mapping[str, int]
  ) -> Mapping[str, int]:
    lengths = dict.fromkeys(self.MODEL_FEATURES, self._layout.length)
    if self.num_packed > 1:
      lengths |= dict.fromkeys(_BOOKKEEPING, self.num_packed)
    return lengths
