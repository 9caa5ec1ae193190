# SPDX-License-Identifier: Apache-2.0
"""Makes a semantic tokenizer of a public encoder that lies on disk.

Reads a wav2vec 2.0, HuBERT or MERT model as Hugging Face stores it, takes the
frames of one of its blocks, and fits k-means on a corpus. The artefact is used
like one made from w2v-BERT.
"""

import argparse

EPILOG = """example (MERT has 75 frames a second: 3 of them make the 25 Hz of
MusicLM's semantic tokens; of HuBERT's 50 take 2):
  musiclm import --encoder=models/MERT-v1-95M --layer=7 --pool_frames=3 \\
    --corpus_dir=data_built/score_corpus/tiny/1.1.0 --num_clusters=1024 \\
    --output_dir=artifacts/semantic"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument(
    "--encoder",
    required=True,
    help="folder with config.json and model.safetensors",
  )
  parser.add_argument(
    "--layer",
    type=int,
    required=True,
    help="block from 1 whose output is clustered; 0 for the blocks' input",
  )
  parser.add_argument(
    "--pool_frames", type=int, default=1, help="frames averaged to one token"
  )
  parser.add_argument("--corpus_dir", required=True, help="a prepared corpus")
  parser.add_argument("--split", default="train", help="of the corpus")
  parser.add_argument("--num_clusters", type=int, default=1024)
  parser.add_argument(
    "--max_points", type=int, default=500_000, help="frames k-means sees"
  )
  parser.add_argument(
    "--clusters", choices=("host", "mesh"), default="host", help="where it runs"
  )
  parser.add_argument("--seed", type=int, default=0, help="of k-means")
  parser.add_argument(
    "--output_dir", required=True, help="the artefact's folder; replaced"
  )


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  import os

  from musiclm_jax.cli import exporters
  from musiclm_jax.systems import encoder_import

  config, params = encoder_import.load(
    args.encoder, args.layer, args.pool_frames
  )
  exporter = exporters.SemanticExporter(
    corpus_dir=args.corpus_dir,
    num_clusters=args.num_clusters,
    split=args.split,
    max_points=args.max_points,
    seed=args.seed,
    clusters=args.clusters,
  )
  metadata = {"encoder": os.path.abspath(args.encoder), "layer": args.layer}
  mark = exporter.freeze(config, params, args.output_dir, metadata)
  print(
    f"{args.output_dir}: fingerprint {mark}, {config.frame_rate_hz:g} tokens "
    "per second"
  )
  return 0
