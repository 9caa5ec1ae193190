# SPDX-License-Identifier: Apache-2.0
"""Seqio feature converters: task features in, model inputs out.

The only place where the features of a task become what a trainable reads.
"""

from collections.abc import Mapping, Sequence

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

  def __init__(self):
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
  """

  MODEL_FEATURES = {
    "decoder_input_tokens": _Spec(dtype=tf.int32),
    "decoder_target_tokens": _Spec(dtype=tf.int32),
    "decoder_loss_weights": _Spec(dtype=tf.float32),
    **_BOOKKEEPING,
  }
  TASK_FEATURES = _BOOKKEEPING
  PACKING_FEATURE_DTYPES = None

  def __init__(self, layout: stages.StageLayout):
    """Converts codes to sequences of `layout`."""
    self._layout = layout
    names = [segment.stream for segment in layout.spec.segments]
    self._streams = list(dict.fromkeys(names))
    self.TASK_FEATURES = {
      **{name: _Spec(dtype=tf.int32, rank=2) for name in self._streams},
      **_BOOKKEEPING,
    }
    super().__init__(pack=False)

  def encode(self, *codes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Inputs, targets and weights of one example, each `[length]`."""
    tokens = self._layout.encode(dict(zip(self._streams, codes)))
    inputs = np.concatenate([[stages.BOS_ID], tokens[:-1]]).astype(np.int32)
    weights = (tokens != stages.PAD_ID).astype(np.float32)
    weights[: self._layout.target_start] = 0.0
    return [inputs, tokens, weights]

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
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

  def get_model_feature_lengths(
    self, task_feature_lengths: Mapping[str, int]
  ) -> Mapping[str, int]:
    return dict.fromkeys(self.MODEL_FEATURES, self._layout.length)
