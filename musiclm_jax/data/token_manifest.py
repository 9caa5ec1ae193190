# SPDX-License-Identifier: Apache-2.0
"""The manifest of a token cache: what came in, what is in it, what is not.

The markers of all shards flow in; `manifest.json` and `cache.json` flow out.
Both are the same whoever writes them, and however often.
"""

import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from musiclm_jax.core import artifacts, errors
from musiclm_jax.data import token_cache, token_cache_writer

MANIFEST_NAME = "manifest.json"
REPORTS_NAME = "reports"
CLAIMS_NAME = "claims"
_MAX_NAMED = 3


def build(
  writer: token_cache_writer.TokenCacheWriter, num_inputs: Mapping[str, int]
) -> dict[str, Any]:
  """The manifest of a cache whose shards are all done.

  Args:
    writer: of the cache.
    num_inputs: by split.

  Raises:
    UserError: if a shard is missing.
  """
  splits: dict[str, Any] = {}
  for split, shards in writer.markers(num_inputs).items():
    reasons: dict[str, str] = {}
    notes: dict[str, str] = {}
    for _, marker in shards:
      reasons.update(marker.get("reasons", {}))
      notes.update(marker.get("notes", {}))
    splits[split] = {
      "num_inputs": num_inputs[split],
      "num_clips": sum(marker["num_clips"] for _, marker in shards),
      "num_skipped": sum(len(marker["skipped"]) for _, marker in shards),
      "audio_secs": round(
        sum(marker.get("audio_secs", 0.0) for _, marker in shards), 3
      ),
      "frames": {
        name: sum(marker.get("frames", {}).get(name, 0) for _, marker in shards)
        for name in sorted(
          {name for _, marker in shards for name in marker.get("frames", {})}
        )
      },
      "skipped": reasons,
      "converted": notes,
      "shards": [
        {
          "file": shard.file_name,
          "num_clips": marker["num_clips"],
          "audio_secs": marker.get("audio_secs", 0.0),
        }
        for shard, marker in shards
      ],
    }
  return {
    "config": artifacts.config_to_dict(writer.config),
    "num_clips": sum(split["num_clips"] for split in splits.values()),
    "num_skipped": sum(split["num_skipped"] for split in splits.values()),
    "audio_secs": round(sum(s["audio_secs"] for s in splits.values()), 3),
    "splits": splits,
  }


def check_bad_fraction(
  num_skipped: int,
  num_inputs: int,
  max_bad_fraction: float,
  where: str,
  reasons: Mapping[str, str],
) -> None:
  """Raises UserError if more inputs are unusable than allowed."""
  if num_skipped <= max_bad_fraction * num_inputs:
    return
  named = "; ".join(
    f"{name}: {reason}" for name, reason in list(reasons.items())[:_MAX_NAMED]
  )
  raise errors.UserError(
    f"{num_skipped} of {num_inputs} inputs are unusable, more than "
    f"max_bad_fraction={max_bad_fraction:g}; all found so far are listed in "
    f"{where}; the first: {named}"
  )


def finish(
  writer: token_cache_writer.TokenCacheWriter,
  num_inputs: Mapping[str, int],
  max_bad_fraction: float,
) -> dict[str, Any]:
  """Writes the manifest, then makes the cache readable.

  Args:
    writer: of the cache; all shards are done.
    num_inputs: by split; splits that an earlier run finished stay.
    max_bad_fraction: of all inputs that may have been skipped.

  Returns:
    The manifest.

  Raises:
    UserError: if too many inputs were skipped; the manifest is written all
      the same.
  """
  header = token_cache.read_header(writer.directory)
  others = {k: v["num_inputs"] for k, v in header["splits"].items()}
  num_inputs = dict(sorted({**others, **num_inputs}.items()))
  manifest = build(writer, num_inputs)
  path = pathlib.Path(writer.directory) / MANIFEST_NAME
  token_cache_writer.write_json(path, manifest)
  reasons: dict[str, str] = {}
  for split in manifest["splits"].values():
    reasons.update(split["skipped"])
  check_bad_fraction(
    manifest["num_skipped"],
    sum(num_inputs.values()),
    max_bad_fraction,
    str(path),
    reasons,
  )
  writer.finish(num_inputs)
  return manifest


def sweep(directory: pathlib.Path, splits: Iterable[str]) -> None:
  """Removes what killed processes left in a cache.

  Args:
    directory: of the cache.
    splits: finished ones; others may be at work right now on the rest.
  """
  names = "|".join(map(re.escape, splits))
  of_shard = re.compile(rf"({names})-\d+\.")
  of_cache = (
    MANIFEST_NAME,
    token_cache.CONFIG_NAME,
    token_cache.CODEBOOKS_NAME,
  )
  for leftover in directory.glob("*.writing"):
    name = leftover.name.removeprefix(".")  # as `atomic_files` names them
    if of_shard.match(name) or name.startswith(of_cache):
      leftover.unlink(missing_ok=True)
  claims = directory / CLAIMS_NAME
  if claims.is_dir():
    for leftover in claims.iterdir():
      if of_shard.match(leftover.name):
        leftover.unlink(missing_ok=True)
    try:
      claims.rmdir()
    except OSError:
      return  # of other splits, or claimed this very moment
