# SPDX-License-Identifier: Apache-2.0
"""Codec quality: waveforms and codes in, distances and codebook use out.

Two distances: SI-SNR (sample-exact, so a hard judge of a codec trained with
adversarial losses) and the log-mel distance of `log_mel.LogMelConfig`.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from musiclm_jax.evaluation import log_mel

# A reference quieter than this (mean square) has no defined SI-SNR.
_SILENCE = 1e-10
_TINY = 1e-20
_MAX_DB = 120.0


class Tokenizer(Protocol):
  """A frozen codec, as the metrics see it."""

  def encode(self, waveform: np.ndarray) -> Any:
    """float32 `[batch, samples]` to int32 `[batch, frames, codebooks]`."""

  def decode(self, codes: np.ndarray) -> Any:
    """The first codebooks, `[batch, frames, n]`, to `[batch, samples]`."""


def si_snr_db(reference: np.ndarray, estimate: np.ndarray) -> np.ndarray:
  """Scale-invariant signal-to-noise ratio.

  Both are made zero-mean; the estimate's projection on the reference is the
  signal, the rest is noise.

  Args:
    reference: float `[..., samples]`.
    estimate: float, same shape.

  Returns:
    float64 `[...]` in dB, within ±120; NaN where the reference is silent.

  Raises:
    ValueError: if the shapes differ.
  """
  _check_same_shape(reference, estimate)
  reference = np.asarray(reference, np.float64)
  estimate = np.asarray(estimate, np.float64)
  reference = reference - reference.mean(-1, keepdims=True)
  estimate = estimate - estimate.mean(-1, keepdims=True)
  energy = (reference**2).sum(-1, keepdims=True)
  scale = (reference * estimate).sum(-1, keepdims=True) / (energy + _TINY)
  signal = scale * reference
  noise = ((estimate - signal) ** 2).sum(-1)
  signal = (signal**2).sum(-1)
  ratio = 10.0 * (
    np.log10(np.maximum(signal, _TINY)) - np.log10(np.maximum(noise, _TINY))
  )
  # An all-zero estimate carries nothing: as bad as can be, not 0 / 0.
  ratio = np.where(signal + noise <= _TINY, -_MAX_DB, ratio)
  silent = energy[..., 0] < _SILENCE * reference.shape[-1]
  return np.where(silent, np.nan, np.clip(ratio, -_MAX_DB, _MAX_DB))


def log_mel_distance(
  reference: np.ndarray,
  estimate: np.ndarray,
  config: log_mel.LogMelConfig | None = None,
) -> np.ndarray:
  """Mean absolute difference of natural-log mel spectra.

  Args:
    reference: float `[..., samples]` in [-1, 1].
    estimate: float, same shape.
    config: the spectrum; by default 64 mels, 64 ms Hann window, 16 ms hop.

  Returns:
    float64 `[...]` in nats (1 nat is 8.7 dB), mean over frames and mels.

  Raises:
    ValueError: if the shapes differ.
  """
  _check_same_shape(reference, estimate)
  difference = log_mel.log_mel(reference, config) - log_mel.log_mel(
    estimate, config
  )
  return np.abs(difference).mean((-2, -1), dtype=np.float64)


def _check_same_shape(reference: np.ndarray, estimate: np.ndarray) -> None:
  if np.shape(reference) != np.shape(estimate):
    raise ValueError(
      f"estimate of shape {np.shape(estimate)}: expected "
      f"{np.shape(reference)}, as reference"
    )


def _code_counts(codes: np.ndarray, codebook_size: int) -> np.ndarray:
  """Occurrences of each code, int64 `[codebooks, codebook_size]`."""
  codes = np.asarray(codes)
  if codes.size and codes.max() >= codebook_size:
    raise ValueError(
      f"codes up to {codes.max()}: expected less than "
      f"codebook_size={codebook_size}"
    )
  flat = codes.reshape(-1, codes.shape[-1])
  return np.stack(
    [
      np.bincount(level[level >= 0], minlength=codebook_size)
      for level in flat.T
    ]
  )


def codebook_usage(codes: np.ndarray, codebook_size: int) -> list[float]:
  """Fraction of each codebook's entries that occur at least once.

  Args:
    codes: int32 `[..., frames, codebooks]`; negative codes are padding.
    codebook_size: entries per codebook.

  Returns:
    One fraction in [0, 1] per level.

  Raises:
    ValueError: if a code is not below `codebook_size`.
  """
  counts = _code_counts(codes, codebook_size)
  return [float(level) for level in (counts > 0).mean(-1)]


def codebook_perplexity(codes: np.ndarray, codebook_size: int) -> list[float]:
  """exp(entropy) of the code frequencies of each level.

  Args:
    codes: int32 `[..., frames, codebooks]`; negative codes are padding.
    codebook_size: entries per codebook.

  Returns:
    One number in [1, codebook_size] per level: how many equally frequent
    entries would be as uneven.
  """
  counts = _code_counts(codes, codebook_size).astype(np.float64)
  share = counts / np.maximum(counts.sum(-1, keepdims=True), 1.0)
  entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(-1)
  return [float(level) for level in np.exp(entropy)]


def encode_batches(
  tokenizer: Tokenizer, waveforms: np.ndarray, batch_size: int = 8
) -> np.ndarray:
  """Codes of all waveforms, int32 `[clips, frames, codebooks]`."""
  return _in_batches(tokenizer.encode, waveforms, batch_size).astype(np.int32)


def decode_batches(
  tokenizer: Tokenizer,
  codes: np.ndarray,
  num_samples: int,
  batch_size: int = 8,
) -> np.ndarray:
  """Waveforms of codes, cut to `num_samples`, float32 `[clips, samples]`.

  Raises:
    ValueError: if the codec returns fewer samples than asked for.
  """
  out = _in_batches(tokenizer.decode, codes, batch_size)
  if out.shape[-1] < num_samples:
    raise ValueError(
      f"decoded waveform has {out.shape[-1]} samples: expected at least "
      f"{num_samples}"
    )
  return out[..., :num_samples].astype(np.float32)


def _in_batches(function: Any, array: np.ndarray, batch_size: int):
  """Applies `function` by equal batches: one shape, so one compilation."""
  parts = []
  for start in range(0, len(array), batch_size):
    batch = array[start : start + batch_size]
    missing = batch_size - len(batch) if start else 0
    if missing:
      batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
    out = np.asarray(function(batch))
    parts.append(out[: len(out) - missing])
  return np.concatenate(parts)


def codec_table(
  tokenizer: Tokenizer,
  waveforms: np.ndarray,
  codebook_counts: Sequence[int] = (1, 2, 4, 8, 12),
  codebook_size: int | None = None,
  config: log_mel.LogMelConfig | None = None,
  batch_size: int = 8,
) -> dict[str, Any]:
  """Reconstruction quality by number of codebooks decoded, on held-out audio.

  Args:
    tokenizer: the frozen codec.
    waveforms: float32 `[clips, samples]` in [-1, 1].
    codebook_counts: how many first codebooks to decode, one row each.
    codebook_size: entries per codebook; without it, no usage is reported.
    config: the log-mel spectrum; its sample rate must be the waveforms'. By
      default the tokenizer's `sample_rate_hz`, or 16 kHz where it has none.
    batch_size: clips per codec call.

  Returns:
    The `codec` entry of `summary.json`: 'log_mel_distance' and 'si_snr_db',
    each {str(count): mean over clips}, 'codebook_usage',
    'codebook_perplexity', 'definition', 'num_clips'. Silent clips are left
    out of SI-SNR (NaN when all are silent).

  Raises:
    ValueError: if there is no clip, or the codec has too few codebooks.
  """
  waveforms = np.asarray(waveforms, np.float32)
  if waveforms.ndim != 2 or not len(waveforms):
    raise ValueError(
      f"waveforms of shape {waveforms.shape}: expected [clips >= 1, samples]"
    )
  if config is None:
    rate = getattr(tokenizer, "sample_rate_hz", 16000)
    config = log_mel.LogMelConfig(sample_rate_hz=rate)
  codes = encode_batches(tokenizer, waveforms, batch_size)
  if max(codebook_counts) > codes.shape[-1]:
    raise ValueError(
      f"codebook_counts={tuple(codebook_counts)}: the codec has "
      f"{codes.shape[-1]} codebooks"
    )
  distances, ratios = {}, {}
  for count in codebook_counts:
    decoded = decode_batches(
      tokenizer, codes[..., :count], waveforms.shape[-1], batch_size
    )
    by_clip = log_mel_distance(waveforms, decoded, config)
    distances[str(count)] = float(by_clip.mean())
    snr = si_snr_db(waveforms, decoded)
    snr = snr[~np.isnan(snr)]
    ratios[str(count)] = float(snr.mean()) if snr.size else float("nan")
  table = {
    "log_mel_distance": distances,
    "si_snr_db": ratios,
    "definition": config.describe(),
    "num_clips": len(waveforms),
  }
  if codebook_size is not None:
    table["codebook_usage"] = codebook_usage(codes, codebook_size)
    table["codebook_perplexity"] = codebook_perplexity(codes, codebook_size)
  return table
