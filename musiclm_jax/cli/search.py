# SPDX-License-Identifier: Apache-2.0
"""Finds the audio nearest to a text or to other audio.

Asks an index that `musiclm embed AUDIO --output=DIR` wrote, exactly: every
vector is compared.
"""

import argparse

EPILOG = """examples:
  musiclm search "a slow solo flute" --index=runs/index
  musiclm search --audio=query.wav --index=runs/index --top_k=20 \\
    --html=runs/nearest.html"""
MIXED_ARGUMENTS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  from musiclm_jax.cli import embed

  parser.add_argument("query", nargs="?", help="a text")
  parser.add_argument(
    "--audio", metavar="FILE", help="ask with audio in place of a text"
  )
  parser.add_argument("--index", required=True, help="folder of the index")
  parser.add_argument(
    "--top_k", type=int, default=10, help="files to show (default: %(default)s)"
  )
  parser.add_argument(
    "--json", action="store_true", help="print JSON, not a table"
  )
  parser.add_argument(
    "--html", metavar="FILE", help="write a page with the nearest to listen to"
  )
  parser.add_argument(
    "--embed_audio",
    action="store_true",
    help="put the sound into the page (10 s of each file), so that it can be "
    "moved; without it the page plays the files where they lie",
  )
  embed.add_mulan_argument(parser)


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  import json

  from musiclm_jax.cli import embedding_files
  from musiclm_jax.core import errors
  from musiclm_jax.evaluation import search_page
  from musiclm_jax.systems import audio_index

  if (args.query is None) == (args.audio is None):
    raise errors.UserError(
      "expected a text, or --audio=FILE, and not both"
      if args.audio
      else "nothing to search for: expected a text or --audio=FILE"
    )
  if args.embed_audio and not args.html:
    raise errors.UserError("--embed_audio: expected --html=FILE with it")
  if args.top_k < 1:
    raise errors.UserError(f"--top_k={args.top_k}: expected a positive number")
  index = audio_index.AudioIndex.open(args.index)
  mulan = embedding_files.load_mulan(args.mulan)
  index.check_fingerprint(mulan.fingerprint)
  if args.audio:
    _, vectors = embedding_files.embed_file(mulan, args.audio, by_window=False)
  else:
    vectors = mulan.embed_text([args.query])
  hits = index.search(vectors[0], args.top_k)
  if not hits:
    raise errors.UserError(f"index at {args.index} holds no files")
  query = search_page.Query(args.query, args.audio)
  facts = audio_index.describe(index)
  if args.html:
    page = search_page.write(
      args.html, query, hits, facts, index.config.window_secs, args.embed_audio
    )
  if args.json:
    record = {"query": args.query, "audio": args.audio, **facts}
    record["hits"] = [hit._asdict() for hit in hits]
    print(json.dumps(record, indent=2, ensure_ascii=False))
    return 0
  _print(hits, facts)
  if args.html:
    print(page)
  return 0


def _print(hits, facts) -> None:
  """A table for a terminal."""
  head = "start_secs  " if facts["by_window"] else ""
  print(f"rank  cosine  {head}file")
  for rank, hit in enumerate(hits, 1):
    start = f"{hit.start_secs:10.0f}  " if facts["by_window"] else ""
    print(f"{rank:4d}  {hit.score:6.3f}  {start}{hit.path}")
  print(f"of {facts['num_files']} files, {facts['num_vectors']} vectors")
