# SPDX-License-Identifier: Apache-2.0
"""Is a melody known again: embeddings in, ranks and what changes cost out.

Protocol. Candidates are the references, one per work; a query is a version of
one of them, changed in one way; one candidate is the right one. The rank of
the right one is 1 at best, and candidates as near as it count as ranked before
it, so an embedder that maps all clips to one point scores 1 / works.
"""

from collections.abc import Mapping

import numpy as np

from musiclm_jax.evaluation import bootstrap, retrieval


def reciprocal_ranks(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
  """1 / rank of each query's own reference.

  Args:
    queries: float `[works, dim]`, unit length.
    references: float `[works, dim]`, unit length; row i is of the same work.

  Returns:
    float64 `[works]` in (0, 1].

  Raises:
    ValueError: if the shapes differ or there are no rows.
  """
  queries = np.asarray(queries, np.float32)
  references = np.asarray(references, np.float32)
  if queries.ndim != 2 or queries.shape != references.shape or not len(queries):
    raise ValueError(
      f"queries of shape {queries.shape}, references of shape "
      f"{references.shape}: expected one [works >= 1, dim]"
    )
  own = np.eye(len(queries), dtype=bool)
  return 1.0 / retrieval.ranks(queries @ references.T, own)


def chance(num_works: int) -> float:
  """Mean reciprocal rank of a random order of the candidates."""
  return float(np.mean(1.0 / np.arange(1, num_works + 1)))


def score(
  embeddings: Mapping[str, np.ndarray],
  reference: str = "reference",
  seed: int = 0,
) -> dict:
  """Mean reciprocal rank by transformation.

  Args:
    embeddings: float `[works, dim]` of unit length by name of the
      transformation, with the works in the same order.
    reference: name of the candidates.
    seed: of the bootstrap over works.

  Returns:
    {'num_works', 'chance', 'transformations'}; for each transformation 'mrr'
    (mean, low and high of a 95 % interval), 'recall_at_1', 'similarity' (mean
    cosine to the own reference), 'similarity_others' (to the others) and
    'confused_with': how the works whose rank is not 1 lie by rank, '2-5',
    '6-20' and 'beyond', as shares of all works.

  Raises:
    ValueError: if there is no reference, or shapes differ.
  """
  if reference not in embeddings:
    raise ValueError(
      f"reference={reference!r}: expected one of {sorted(embeddings)}"
    )
  candidates = np.asarray(embeddings[reference], np.float32)
  num_works, found = len(candidates), {}
  for name, queries in embeddings.items():
    if name == reference:
      continue
    values = reciprocal_ranks(queries, candidates)
    rank = np.round(1.0 / values).astype(int)
    similarity = np.asarray(queries, np.float32) @ candidates.T
    own = float(np.trace(similarity)) / num_works
    others = max(num_works * (num_works - 1), 1)
    found[name] = {
      "mrr": bootstrap.mean_interval(values, seed=seed).to_dict(),
      "recall_at_1": float((rank == 1).mean()),
      "similarity": own,
      "similarity_others": float(similarity.sum() - own * num_works) / others,
      "confused_with": {
        "2-5": float(((rank > 1) & (rank <= 5)).mean()),
        "6-20": float(((rank > 5) & (rank <= 20)).mean()),
        "beyond": float((rank > 20).mean()),
      },
    }
  return {
    "num_works": num_works,
    "chance": chance(num_works),
    "transformations": found,
  }


def table(results: Mapping[str, dict]) -> str:
  """Results of several embedders as a Markdown table.

  Args:
    results: what `score` returned, by name of the embedder; the first gives
      the order of rows and the detail.
  """
  names = list(results)
  first = results[names[0]]
  head = ["transformation", *(f"MRR, {name}" for name in names)]
  head += ["first", "2nd-5th", "6th-20th", "beyond", "cosine own", "others"]
  lines = [
    f"{first['num_works']} works; chance {first['chance']:.3f}",
    "",
    "| " + " | ".join(head) + " |",
    "|" + "---|" * len(head),
  ]
  for name, row in first["transformations"].items():
    cells = [name]
    for embedder in names:
      interval = results[embedder]["transformations"][name]["mrr"]
      cells.append("{mean:.3f} ({low:.3f}-{high:.3f})".format(**interval))
    cells.append(f"{100 * row['recall_at_1']:.0f} %")
    cells += [f"{100 * s:.0f} %" for s in row["confused_with"].values()]
    cells += [f"{row['similarity']:.2f}", f"{row['similarity_others']:.2f}"]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)
