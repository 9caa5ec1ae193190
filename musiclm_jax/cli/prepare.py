# SPDX-License-Identifier: Apache-2.0
"""Builds a corpus: the demo scores, or a folder of your own audio.

Also makes what training reads beside it: a text vocabulary from the captions
of the train split, and files of held-out prompts and paraphrases.
"""

import argparse

EPILOG = """examples:
  musiclm prepare score_corpus --size=tiny --data_dir=data_built
  musiclm prepare melody_pairs --size=tiny --data_dir=data_built
  musiclm prepare audio_folder --source_dir=my_music --data_dir=data_built \\
    --captions=my_music/captions.csv
  musiclm prepare audio_folder --source_dir=my_music --data_dir=data_built \\
    --sample_rate_hz=48000 --num_channels=2
  musiclm prepare text_vocabulary --vocab_size=512 --output_dir=text \\
    --corpus_dir=data_built/score_corpus/tiny/1.1.0
  musiclm prepare prompts --num_prompts=24 --output=prompts.jsonl \\
    --corpus_dir=data_built/score_corpus/tiny/1.1.0
  musiclm prepare paraphrases --output=paraphrases.jsonl \\
    --corpus_dir=data_built/score_corpus/tiny/1.1.0"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  kinds = parser.add_subparsers(dest="kind", metavar="WHAT", required=True)

  scores = kinds.add_parser(
    "score_corpus", help="public-domain scores, rendered in arrangements"
  )
  pairs = kinds.add_parser(
    "melody_pairs", help="melodies of those scores in many versions each"
  )
  for kind in (scores, pairs):
    kind.add_argument("--size", default="tiny", help="tiny or small")
    kind.add_argument("--seed", type=int, default=0)
    kind.add_argument(
      "--share", type=float, default=1.0, help="of the size, to try things out"
    )

  folder = kinds.add_parser("audio_folder", help="a tree of audio files")
  folder.add_argument("--source_dir", required=True, help="the tree")
  folder.add_argument("--captions", help="CSV or JSONL with file, caption, ...")
  folder.add_argument("--segment_secs", type=float, default=30.0)
  folder.add_argument(
    "--max_bad_fraction",
    type=float,
    default=0.1,
    help="fail if more of the files are bad",
  )
  folder.add_argument(
    "--keep_near_duplicates",
    action="store_true",
    help="do not look for copies in another encoding, nor leave them out",
  )
  folder.add_argument(
    "--sample_rate_hz", type=int, default=24_000, help="of the clips"
  )
  folder.add_argument(
    "--num_channels",
    type=int,
    default=1,
    help="2 keeps left and right; mono sources are doubled",
  )
  for kind in (scores, pairs, folder):
    kind.add_argument("--data_dir", required=True, help="where it is built")
    kind.add_argument(
      "--num_processes", type=int, default=0, help="0 for all cores"
    )

  text = kinds.add_parser(
    "text_vocabulary", help="a SentencePiece model of the texts"
  )
  text.add_argument("--vocab_size", type=int, default=512)
  text.add_argument("--output_dir", required=True, help="gets text.model")

  prompts = kinds.add_parser("prompts", help="held-out captions as prompts")
  prompts.add_argument("--num_prompts", type=int, default=24)
  prompts.add_argument("--seed", type=int, default=0)
  prompts.add_argument("--output", required=True, help="a JSONL file")

  paraphrases = kinds.add_parser(
    "paraphrases", help="a score_corpus's captions in held-out words, and tags"
  )
  paraphrases.add_argument("--output", required=True, help="a JSONL file")
  for kind, split in (
    (text, "train"),
    (prompts, "test"),
    (paraphrases, "test"),
  ):
    kind.add_argument("--corpus_dir", required=True, help="a prepared corpus")
    kind.add_argument("--split", default=split)


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  return {
    "score_corpus": _rendered,
    "melody_pairs": _rendered,
    "audio_folder": _audio_folder,
    "text_vocabulary": _text_vocabulary,
    "prompts": _prompts,
    "paraphrases": _paraphrases,
  }[args.kind](args)


def _rendered(args: argparse.Namespace) -> int:
  from musiclm_jax.data import corpora

  prepare = {
    "score_corpus": corpora.prepare_score_corpus,
    "melody_pairs": corpora.prepare_melody_pairs,
  }[args.kind]
  path = prepare(
    args.data_dir,
    args.size,
    args.seed,
    args.num_processes,
    share=args.share,
  )
  print(path)
  return 0


def _audio_folder(args: argparse.Namespace) -> int:
  from musiclm_jax.data import corpora

  path = corpora.prepare_audio_folder(
    args.data_dir,
    args.source_dir,
    captions=args.captions,
    segment_secs=args.segment_secs,
    max_bad_fraction=args.max_bad_fraction,
    near_duplicates=not args.keep_near_duplicates,
    sample_rate_hz=args.sample_rate_hz,
    num_channels=args.num_channels,
    num_processes=args.num_processes,
  )
  print(path)
  return 0


def _text_vocabulary(args: argparse.Namespace) -> int:
  from musiclm_jax.core import vocabularies
  from musiclm_jax.data import clips, text_vocabulary

  reader = clips.ClipReader(args.corpus_dir, args.split)
  lines: list[str] = []
  for index in range(len(reader)):
    texts = reader.texts(index)
    lines += texts.captions or texts.aspects
    lines += texts.titles + texts.playlists
  path = text_vocabulary.train(lines, args.output_dir, args.vocab_size)
  print(f"{path}: {vocabularies.load(path).num_tokens} ids")
  return 0


def _prompts(args: argparse.Namespace) -> int:
  import random

  from musiclm_jax.cli import prompt_files
  from musiclm_jax.core import errors
  from musiclm_jax.data import clips

  reader = clips.ClipReader(args.corpus_dir, args.split)
  rng = random.Random(args.seed)
  order = rng.sample(range(len(reader)), len(reader))
  texts: dict[str, str] = {}
  for index in order:
    captions = reader.captions(index)
    if captions and len(texts) < args.num_prompts:
      texts.setdefault(rng.choice(captions), reader.clip_id(index))
  if not texts:
    raise errors.UserError(
      f"split {args.split!r} of {args.corpus_dir} has no captions"
    )
  prompt_files.write(
    args.output,
    [{"prompt": text, "source": source} for text, source in texts.items()],
  )
  print(f"{args.output}: {len(texts)} prompts")
  return 0


def _paraphrases(args: argparse.Namespace) -> int:
  from musiclm_jax.cli import prompt_files
  from musiclm_jax.data import paraphrases

  rows = paraphrases.descriptions(args.corpus_dir, args.split)
  prompt_files.write(args.output, rows)
  print(f"{args.output}: {len(rows)} clips")
  return 0
