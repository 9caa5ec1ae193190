# SPDX-License-Identifier: Apache-2.0
"""Frozen networks on the host: numpy waveforms and texts in, vectors out.

What the tokenizers quantize, and what their quantizers are fitted on. Shapes
are rounded up to few sizes, so that few programs are compiled.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.core import errors, vocabularies
from musiclm_jax.networks import mulan, semantic_encoders
from musiclm_jax.systems import mulan_inputs

# Rows per call of a network: bounds memory, whatever the caller's batch.
_MAX_ROWS = 32


def check_finite(waveform: np.ndarray) -> None:
  """Refuses a batch `[batch, ...]` with NaN or infinite samples; names the row.

  Raises:
    UserError: if there are some.
  """
  finite = np.isfinite(waveform).all(tuple(range(1, waveform.ndim)))
  if not finite.all():
    raise errors.UserError(
      f"waveform {int(np.argmin(finite))} of the batch holds NaN or infinite "
      "samples: expected finite ones"
    )


def check_waveform(waveform: np.ndarray) -> np.ndarray:
  """A batch of waveforms as float32 `[batch, samples]`.

  Raises:
    ValueError: if it has another rank or no samples.
    UserError: if a sample is NaN or infinite; names the row.
  """
  waveform = np.asarray(waveform, np.float32)
  if waveform.ndim != 2 or 0 in waveform.shape:
    raise ValueError(
      f"waveform has shape {waveform.shape}: expected [batch, samples], not "
      "empty"
    )
  check_finite(waveform)
  return waveform


def resample(waveform: np.ndarray, from_hz: float, to_hz: float) -> np.ndarray:
  """Resamples a batch `[batch, samples]` on the host."""
  waveform = check_waveform(waveform)
  if from_hz == to_hz:
    return waveform
  rows = [files.resample(row, from_hz, to_hz) for row in waveform]
  return np.stack(rows).astype(np.float32)


def bucket(length: int, unit: int) -> int:
  """`length` rounded up: to units up to 12 of them, then to 10 units."""
  step = unit if length <= 12 * unit else 10 * unit
  return -(-length // step) * step


def pad_axis(array: np.ndarray, length: int, axis: int = 1) -> np.ndarray:
  """Zeros behind `array` up to `length` along `axis`."""
  padding = [(0, 0)] * array.ndim
  padding[axis] = (0, length - array.shape[axis])
  return np.pad(array, padding)


def in_chunks(
  function: Callable[..., Any],
  *arrays: np.ndarray,
  max_rows: int = _MAX_ROWS,
) -> np.ndarray:
  """Calls `function` on few rows at a time, padded to powers of two.

  Args:
    function: arrays to an array, row by row independent.
    *arrays: with the same leading axis.
    max_rows: most rows per call; a power of two.

  Returns:
    The results, stacked, as numpy.
  """
  num_rows = len(arrays[0])
  results = []
  for start in range(0, num_rows, max_rows):
    parts = [array[start : start + max_rows] for array in arrays]
    count = len(parts[0])
    size = 1 << (count - 1).bit_length()
    parts = [pad_axis(part, size, axis=0) for part in parts]
    results.append(np.asarray(jax.device_get(function(*parts)))[:count])
  return np.concatenate(results)


def cut_windows(waveform: np.ndarray, length: int, stride: int) -> np.ndarray:
  """Views of all whole windows, `[batch, windows, length]`.

  Audio shorter than a window is repeated to fill it.

  Args:
    waveform: `[batch, samples]`.
    length: samples of a window.
    stride: samples between their starts.
  """
  if waveform.shape[1] < length:
    repeats = -(-length // waveform.shape[1])
    waveform = np.tile(waveform, (1, repeats))[:, :length]
  return np.lib.stride_tricks.sliding_window_view(waveform, length, axis=1)[
    :, ::stride
  ]


class SemanticFeatures:
  """Frames of the tapped block of a frozen w2v-BERT or imported encoder.

  Attributes:
    config: of the network.
    frame_rate_hz: frames per second.
  """

  def __init__(
    self, config: semantic_encoders.Config, params: Mapping[str, Any]
  ):
    """Binds the network to its (unboxed) parameters."""
    self.config = config
    self.frame_rate_hz = config.frame_rate_hz
    self._variables = {"params": jax.device_put(params)}
    network = semantic_encoders.make(config)
    self._apply = jax.jit(
      lambda variables, waveform, mask: network.apply(
        variables, waveform, mask, method=network.features
      )
    )

  def num_frames(self, num_samples: int) -> int:
    """Frames of a waveform at the network's rate, the last one begun."""
    return -(-num_samples // self.config.samples_per_frame)

  def __call__(self, waveform: np.ndarray, sample_rate_hz: float) -> np.ndarray:
    """Features of waveforms.

    Args:
      waveform: float32 `[batch, samples]` in [-1, 1].
      sample_rate_hz: its rate.

    Returns:
      float32 `[batch, frames, embed]`.
    """
    rate_hz = self.config.sample_rate_hz
    waveform = resample(waveform, sample_rate_hz, rate_hz)
    frames = self.num_frames(waveform.shape[1])
    per_frame = self.config.samples_per_frame
    unit = max(1, round(self.frame_rate_hz))  # frames of about a second
    padded_frames = bucket(frames, unit)
    waveform = pad_axis(waveform, padded_frames * per_frame)
    mask = np.broadcast_to(
      np.arange(padded_frames) < frames, (len(waveform), padded_frames)
    )
    features = in_chunks(
      lambda *parts: self._apply(self._variables, *parts), waveform, mask
    )
    return features[:, :frames]


class MuLanEmbedder:
  """Both towers of a frozen MuLan.

  Attributes:
    config: of the network.
  """

  def __init__(
    self,
    config: mulan.MuLanConfig,
    params: Mapping[str, Any],
    text_files: Mapping[str, bytes],
  ):
    """Binds the network to its (unboxed) parameters.

    Args:
      config: of the network.
      params: of both towers.
      text_files: `files` of the text vocabulary (`core/vocabularies.py`).

    Raises:
      UserError: if the vocabulary is damaged or has more ids than the tower.
    """
    self.config = config
    self._vocabulary = vocabularies.from_files(text_files)
    if self._vocabulary.num_tokens > config.active_text.vocab_size:
      raise errors.UserError(
        f"text vocabulary has {self._vocabulary.num_tokens} ids: expected at "
        f"most vocab_size={config.active_text.vocab_size} of the text tower"
      )
    self._variables = {"params": jax.device_put(params)}
    network = mulan.MuLan(config)
    self._audio_apply = jax.jit(
      lambda variables, waveform: network.apply(
        variables, waveform, method=network.embed_audio
      )
    )
    self._text_apply = jax.jit(
      lambda variables, tokens: network.apply(
        variables, tokens, method=network.embed_text
      )
    )

  def tokenize(self, texts: Sequence[str]) -> np.ndarray:
    """Texts to int32 `[batch, max_length]`, padded with 0.

    A longer text is cut, unknown words and characters share one id; a warning
    says so.

    Raises:
      UserError: if something is no text, or a text is blank; names which.
    """
    length = self.config.active_text.max_length
    return mulan_inputs.as_ids(texts, self._vocabulary, length)

  def embed_text(self, texts: Sequence[str]) -> np.ndarray:
    """Texts to float32 `[batch, output_dim]` of unit length.

    Raises:
      UserError: as `tokenize`.
    """
    if isinstance(texts, str):
      texts = [texts]
    return in_chunks(
      lambda tokens: self._text_apply(self._variables, tokens),
      self.tokenize(texts),
    )

  def embed_windows(
    self, waveform: np.ndarray, sample_rate_hz: float
  ) -> np.ndarray:
    """Embeds windows of 10 s, one starting every second (MusicLM sec. 3.1).

    Audio shorter than a window is repeated to fill it: silence would be
    heard as a property of the music. What is silent or shorter than a second
    is warned of.

    Args:
      waveform: float `[batch, samples]` or `[batch, samples, channels]` in
        [-1, 1]; channels are averaged.
      sample_rate_hz: its rate.

    Returns:
      float32 `[batch, windows, output_dim]` of unit length.

    Raises:
      ValueError: if shape, dtype or rate is another.
      UserError: if a sample is NaN or infinite, or nothing is left at the
        network's rate.
    """
    rate_hz = self.config.mel.sample_rate_hz
    mono = mulan_inputs.as_mono(waveform, sample_rate_hz)
    if round(mono.shape[1] * rate_hz / sample_rate_hz) < 1:
      raise errors.UserError(
        f"audio of {mono.shape[1]} samples at {sample_rate_hz:g} Hz: expected "
        f"at least one at {rate_hz} Hz"
      )
    waveform = resample(mono, sample_rate_hz, rate_hz)
    windows = cut_windows(
      waveform, round(self.config.window_secs * rate_hz), rate_hz
    )
    batch, count, _ = windows.shape
    # Cut clip by clip: all windows at once hold the audio ten times.
    embedded = [
      in_chunks(lambda part: self._audio_apply(self._variables, part), rows)
      for rows in (windows if count > 1 else [windows[:, 0]])
    ]
    return np.concatenate(embedded).reshape(batch, count, -1)

  def embed_stream(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Embeds audio that comes in blocks: memory does not grow with its length.

    Args:
      blocks: float32 `[samples]`, of one waveform at the rate of
        `config.mel`, in order, any lengths.

    Yields:
      float32 `[windows, output_dim]`, in order; all together what
      `embed_windows` gives for the whole.
    """
    rate_hz = self.config.mel.sample_rate_hz
    length = round(self.config.window_secs * rate_hz)
    enough = length + (_MAX_ROWS - 1) * rate_hz
    held, is_begun = np.zeros(0, np.float32), False
    for block in blocks:
      held = np.concatenate([held, np.asarray(block, np.float32)])
      while len(held) >= enough:
        yield self.embed_windows(held[None, :enough], rate_hz)[0]
        held, is_begun = held[_MAX_ROWS * rate_hz :], True
    if not is_begun or len(held) >= length:
      yield self.embed_windows(held[None], rate_hz)[0]

  def embed_audio(
    self, waveform: np.ndarray, sample_rate_hz: float
  ) -> np.ndarray:
    """Mean of the windows' embeddings, of unit length again.

    The paper does not say whether the mean is normalised. Text embeddings
    have unit length; the quantizer must see both alike.

    Args:
      waveform: as `embed_windows`.
      sample_rate_hz: its rate.

    Returns:
      float32 `[batch, output_dim]`.

    Raises:
      ValueError: as `embed_windows`.
      UserError: as `embed_windows`.
    """
    mean = self.embed_windows(waveform, sample_rate_hz).mean(1)
    norm = np.linalg.norm(mean, axis=-1, keepdims=True)
    return (mean / np.maximum(norm, 1e-12)).astype(np.float32)
