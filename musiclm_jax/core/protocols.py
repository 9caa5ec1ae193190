# SPDX-License-Identifier: Apache-2.0
"""Seams between folders: what a trainable, a metric, an embedder is."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

Batch = Mapping[str, jax.Array]
Variables = Mapping[str, Any]


class Mean(NamedTuple):
  """A metric as sum and weight, so that batches and hosts average exactly."""

  total: Any
  count: Any

  def merge(self, other: "Mean") -> "Mean":
    return Mean(self.total + other.total, self.count + other.count)


class LossOutput(NamedTuple):
  """What `Trainable.loss` returns beside the loss.

  Attributes:
    state: updated non-parameter collections (codebooks, statistics).
    metrics: by name, `Mean`s.
  """

  state: Mapping[str, Any]
  metrics: Mapping[str, Mean]


@runtime_checkable
class Trainable(Protocol):
  """A network with its loss; knows neither devices, data nor optimizers.

  A trainable may also define
  `gradients(variables, batch, key, step) -> (grads, LossOutput)` where one
  loss does not fit all parameters (a GAN); `grads` has the tree of
  `variables['params']`. The loop then calls it in place of `jax.grad(loss)`.

  Where the rows of a batch depend on each other, `in_parts(num_microbatches)`
  gives a trainable with the loss of the whole batch that needs the memory of
  a part; the step then does not cut the batch itself.

  And it may start codebooks from data before the first step:
  `num_warm_start_batches` and `warm_start(variables, batches, key) ->` those
  variables ('params' or other collections, whole) that change. For TensorBoard,
  `media(variables, batch)` gives sounds and pictures of a held-out batch.

  What means trouble is declared: `alarm_rules(batch_size) ->` rules
  (`core/alarms.py`) that the loop compares with the metrics it logs, and
  `loss_terms`, by player the metrics its loss consists of in the order they
  are computed, among which the loop looks for the one that went bad first.
  """

  def input_shapes(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Features the loss reads, with shapes and dtypes."""

  def init(self, key: jax.Array, batch: Batch) -> Variables:
    """Fresh variables: 'params' and perhaps other collections.

    Leaves are boxed with logical axis names (`partitioning/axes.py`).
    """

  def loss(
    self,
    variables: Variables,
    batch: Batch,
    key: jax.Array,
    step: jax.Array,
    train: bool,
  ) -> tuple[jax.Array, LossOutput]:
    """Mean loss of a batch (float32 scalar), new state and metrics."""


@runtime_checkable
class Listener(Protocol):
  """What every embedder and classifier of audio says of itself.

  A number is comparable with another one only where all of this is the same.

  Attributes:
    name: what it is, such as 'mulan' or 'vggish'.
    fingerprint: hex hash of the weights.
    published_as: the short name that metrics may carry, such as 'VGG', if the
      weights are known to be the published ones; else None
      (`evaluation/published_weights.py`).
    sample_rate_hz: rate it listens at; other audio is resampled.
    window_secs: audio under one row of its answer.
    hop_secs: between the starts of two rows.
  """

  name: str
  fingerprint: str
  published_as: str | None
  sample_rate_hz: int
  window_secs: float
  hop_secs: float

  def settings(self) -> dict[str, Any]:
    """Everything beside the weights that changes numbers; JSON-compatible.

    Among them 'sample_rate_hz', 'window_secs', 'hop_secs', 'resampler',
    'gain', 'short_audio' (what becomes of audio shorter than a window), 'tail'
    (of what is behind the last whole window), 'activation' and, where there
    is a choice, 'layer'.
    """


@runtime_checkable
class Embedder(Listener, Protocol):
  """Audio to vectors.

  Attributes:
    embedding_dim: width of a vector.
  """

  embedding_dim: int

  def embed_audio_windows(
    self, waveforms: np.ndarray, sample_rate_hz: float
  ) -> np.ndarray:
    """Embeds windows of each waveform; a row depends on its own one alone.

    Args:
      waveforms: float32 `[batch, samples]`, mono, in [-1, 1].
      sample_rate_hz: their rate.

    Returns:
      float32 `[batch, windows, embedding_dim]`, at least one window.

    Raises:
      ValueError: if the shape is another, or there are no samples.
      UserError: if a sample is NaN or infinite; names the row.
    """


@runtime_checkable
class TextEmbedder(Embedder, Protocol):
  """Both towers of a joint space of audio and text."""

  def embed_text(self, texts: Sequence[str]) -> np.ndarray:
    """Texts to float32 `[texts, embedding_dim]` of unit length.

    Raises:
      UserError: if something is no text, or a text is blank; names which.
    """


@runtime_checkable
class Classifier(Listener, Protocol):
  """Audio to logits of classes.

  Attributes:
    class_names: in the order of the logits.
    multi_label: classes do not exclude each other: a sigmoid makes
      probabilities of the logits; else a softmax does.
  """

  class_names: tuple[str, ...]
  multi_label: bool

  def classify_windows(
    self, waveforms: np.ndarray, sample_rate_hz: float
  ) -> np.ndarray:
    """Classifies windows of each waveform.

    Args:
      waveforms: float32 `[batch, samples]`, mono, in [-1, 1].
      sample_rate_hz: their rate.

    Returns:
      float32 `[batch, windows, classes]`, logits.

    Raises:
      ValueError: as `Embedder.embed_audio_windows`.
      UserError: as `Embedder.embed_audio_windows`.
    """
