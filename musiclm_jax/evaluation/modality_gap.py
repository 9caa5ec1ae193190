# SPDX-License-Identifier: Apache-2.0
"""What MuLan's RVQ loses, and how far apart text and audio lie.

Matched unit embeddings and codebooks in; JSON-compatible reports out. A stage
is trained on the codes of audio and asked with the codes of text: where the
two differ, it is asked something else than what the text says.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from musiclm_jax.core import rvq
from musiclm_jax.evaluation import (
  bootstrap,
  codec_metrics,
  mulan_consistency,
  retrieval,
)

_RECALL_AT = 10


def _check(vectors: np.ndarray, name: str) -> np.ndarray:
  vectors = np.asarray(vectors, np.float32)
  if vectors.ndim != 2 or not len(vectors):
    raise ValueError(
      f"{name} has shape {vectors.shape}: expected [items >= 1, embed]"
    )
  return vectors


def quantization(
  embeddings: np.ndarray, codebooks: np.ndarray
) -> dict[str, Any]:
  """What each level of the RVQ leaves, and how its entries are used.

  Args:
    embeddings: float32 `[items, embed]`, of audio.
    codebooks: float32 `[codebooks, codebook_size, embed]`.

  Returns:
    By level, of the sum of the levels up to it: 'cosine' with the embedding,
    mean over items, and 'variance_left', the mean squared error as a share of
    the variance. By level alone: 'entries_used' and 'perplexity' (in [1,
    codebook_size]). And 'num_embeddings' and 'codebook_size'.

  Raises:
    ValueError: if there is no embedding.
  """
  embeddings = _check(embeddings, "embeddings")
  codes = rvq.encode(embeddings, codebooks)
  size = codebooks.shape[1]
  variance = ((embeddings - embeddings.mean(0)) ** 2).sum(-1).mean()
  cosine, left = [], []
  for levels in range(1, len(codebooks) + 1):
    decoded = rvq.decode(codes[:, :levels], codebooks)
    cosine.append(float(mulan_consistency.cosines(embeddings, decoded).mean()))
    error = ((embeddings - decoded) ** 2).sum(-1).mean()
    left.append(float(error / max(variance, 1e-12)))
  usage = codec_metrics.codebook_usage(codes, size)
  return {
    "cosine": cosine,
    "variance_left": left,
    "entries_used": [round(share * size) for share in usage],
    "perplexity": codec_metrics.codebook_perplexity(codes, size),
    "num_embeddings": len(embeddings),
    "codebook_size": size,
  }


def _by_group(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
  """Means of each group: texts of a clip are no independent draws."""
  _, numbers, counts = np.unique(
    groups, return_inverse=True, return_counts=True
  )
  return np.bincount(numbers, weights=values) / counts


def _chance(first: np.ndarray, second: np.ndarray, size: int) -> list[float]:
  """Agreement by level of codes drawn apart from the two columns."""
  shares = [
    np.stack([np.bincount(level, minlength=size) for level in codes.T])
    / len(codes)
    for codes in (first, second)
  ]
  return [float(level) for level in (shares[0] * shares[1]).sum(-1)]


class Pairs:
  """Matched text and audio with their codes.

  Attributes:
    text: float32 `[pairs, embed]`.
    audio: float32 `[pairs, embed]`.
    groups: `[pairs]`, the work of each pair; intervals are over works.
  """

  def __init__(
    self,
    text: np.ndarray,
    audio: np.ndarray,
    groups: Sequence[Any],
    codebooks: np.ndarray,
  ):
    """Quantizes both sides.

    Raises:
      ValueError: if shapes do not fit.
    """
    self.text, self.audio = _check(text, "text"), _check(audio, "audio")
    self.groups, self._codebooks = np.asarray(groups), codebooks
    if self.text.shape != self.audio.shape or len(self.groups) != len(text):
      raise ValueError(
        f"text of shape {self.text.shape}, audio of shape {self.audio.shape}, "
        f"{len(self.groups)} groups: expected one shape, and a group per pair"
      )
    self._text_codes = rvq.encode(self.text, codebooks)
    self._audio_codes = rvq.encode(self.audio, codebooks)

  def _mean(self, values: np.ndarray) -> dict[str, float]:
    return bootstrap.mean_interval(_by_group(values, self.groups)).to_dict()

  def cosines(self) -> np.ndarray:
    """Of each pair, before the RVQ."""
    return mulan_consistency.cosines(self.text, self.audio)

  def cosines_quantized(self) -> np.ndarray:
    """Of each pair, behind all levels of the RVQ."""
    return mulan_consistency.cosines(
      rvq.decode(self._text_codes, self._codebooks),
      rvq.decode(self._audio_codes, self._codebooks),
    )

  def agreement(self) -> np.ndarray:
    """bool `[pairs, codebooks]`: text and audio have the same code."""
    return self._text_codes == self._audio_codes

  def prefix_agreement(self) -> np.ndarray:
    """bool `[pairs, codebooks]`: all codes up to this level are the same."""
    return np.logical_and.accumulate(self.agreement(), axis=1)

  def report(self) -> dict[str, Any]:
    """How far apart the two sides are.

    Returns:
      'cosine' and 'cosine_quantized' (means with 95 % intervals over works),
      'text_cosine_quantized' and 'audio_cosine_quantized' (of each side with
      what the RVQ makes of it), 'mean_distance' (between the means of the two
      sides, from 0 to 2), and by level: 'agreement' of codes, 'chance' (of
      codes that have nothing to do with each other) and 'prefix_agreement'
      (all levels up to this one agree).
    """
    agree = self.agreement()
    quantized = {
      f"{name}_cosine_quantized": float(
        mulan_consistency.cosines(
          vectors, rvq.decode(codes, self._codebooks)
        ).mean()
      )
      for name, vectors, codes in (
        ("text", self.text, self._text_codes),
        ("audio", self.audio, self._audio_codes),
      )
    }
    return {
      "cosine": self._mean(self.cosines()),
      "cosine_quantized": self._mean(self.cosines_quantized()),
      **quantized,
      "mean_distance": float(
        np.linalg.norm(self.text.mean(0) - self.audio.mean(0))
      ),
      "agreement": [float(share) for share in agree.mean(0)],
      "chance": _chance(
        self._text_codes, self._audio_codes, self._codebooks.shape[1]
      ),
      "prefix_agreement": [
        float(share) for share in self.prefix_agreement().mean(0)
      ],
      "num_pairs": len(self.text),
      "num_works": len(np.unique(self.groups)),
    }

  def effect(self, mapped: "Pairs") -> dict[str, Any]:
    """What a mapper of the text changes; the audio is the same.

    Returns:
      Means with 95 % intervals over works of mapped minus plain, pair by
      pair: 'cosine', 'cosine_quantized', 'agreement' (mean over levels),
      'first_agreement' (of the first level) and 'prefix_length' (levels from
      the first on that agree).
    """
    return {
      name: self._mean(np.asarray(after, float) - before)
      for name, before, after in (
        ("cosine", self.cosines(), mapped.cosines()),
        (
          "cosine_quantized",
          self.cosines_quantized(),
          mapped.cosines_quantized(),
        ),
        (
          "agreement",
          self.agreement().mean(1),
          mapped.agreement().mean(1),
        ),
        (
          "first_agreement",
          self.agreement()[:, 0].astype(float),
          mapped.agreement()[:, 0],
        ),
        (
          "prefix_length",
          self.prefix_agreement().sum(1).astype(float),
          mapped.prefix_agreement().sum(1),
        ),
      )
    }


def retrieval_effect(
  text: np.ndarray,
  mapped: np.ndarray,
  audio: np.ndarray,
  captions: Sequence[str],
) -> dict[str, dict[str, Any]]:
  """Retrieval with text as it is and with mapped text.

  Args:
    text: float `[clips, embed]`, one text per clip.
    mapped: float `[clips, embed]`, the same behind the mapper.
    audio: float `[clips, embed]`.
    captions: the texts.

  Returns:
    'plain' and 'mapped', each as `retrieval.retrieval`, and 'difference': by
    direction, mapped minus plain of the recall at 10, query by query, with a
    95 % interval over queries.
  """
  first, relevant = retrieval.relevance(captions)
  plain = np.asarray(text)[first] @ np.asarray(audio).T
  moved = np.asarray(mapped)[first] @ np.asarray(audio).T
  difference = {}
  for way, before, after, hits in (
    ("text_to_audio", plain, moved, relevant),
    ("audio_to_text", plain.T, moved.T, relevant.T),
  ):
    difference[way] = bootstrap.paired_difference(
      (retrieval.ranks(after, hits) <= _RECALL_AT).astype(float),
      (retrieval.ranks(before, hits) <= _RECALL_AT).astype(float),
    ).to_dict()
  return {
    "plain": retrieval.retrieval(text, audio, captions),
    "mapped": retrieval.retrieval(mapped, audio, captions),
    "difference": difference,
  }


def _row(name: str, values: Sequence[float], form: str) -> str:
  return f"  {name:<20}" + " ".join(format(value, form) for value in values)


def describe(report: Mapping[str, Any]) -> str:
  """Lines for a terminal.

  Args:
    report: 'rvq' (by name of the audio, of `quantization`) and, where there
      are pairs, 'modality_gap' (of `Pairs.report`); with a mapper 'mapped_gap',
      'effect' and 'retrieval' too.
  """
  lines = []
  for name, entry in report["rvq"].items():
    lines.append(
      f"RVQ on {entry['num_embeddings']} {name} embeddings, "
      f"{len(entry['cosine'])} x {entry['codebook_size']}, by level:"
    )
    lines.append(_row("cosine", entry["cosine"], "6.3f"))
    lines.append(_row("variance left", entry["variance_left"], "6.3f"))
    lines.append(_row("entries used", entry["entries_used"], "6d"))
    lines.append(_row("perplexity", entry["perplexity"], "6.1f"))
  for key, title in (
    ("modality_gap", "text against audio"),
    ("mapped_gap", "mapped text against audio"),
  ):
    entry = report.get(key)
    if entry is None:
      continue
    lines.append(
      f"{title}, {entry['num_pairs']} held-out pairs of "
      f"{entry['num_works']} works: cosine {entry['cosine']['mean']:.3f}, "
      f"behind the RVQ {entry['cosine_quantized']['mean']:.3f}, distance of "
      f"the means {entry['mean_distance']:.3f}"
    )
    lines.append(_row("codes agree", entry["agreement"], "6.3f"))
    lines.append(_row("by chance", entry["chance"], "6.3f"))
    lines.append(_row("all levels so far", entry["prefix_agreement"], "6.3f"))
  for name, change in report.get("effect", {}).items():
    lines.append(
      f"  mapper changes {name.replace('_', ' ')} by {change['mean']:+.3f} "
      f"({change['low']:+.3f} to {change['high']:+.3f})"
    )
  found = report.get("retrieval")
  for way, change in found["difference"].items() if found else ():
    before, after = found["plain"][way], found["mapped"][way]
    lines.append(
      f"  {way.replace('_', ' ')} R@10 {before['recall_at_10']:.3f}, mapped "
      f"{after['recall_at_10']:.3f}: {change['mean']:+.3f} "
      f"({change['low']:+.3f} to {change['high']:+.3f})"
    )
  return "\n".join(lines)
