# SPDX-License-Identifier: Apache-2.0
"""A stage that has learnt planted clips by heart, and what the audit says.

For people (docs/memorization.md); a small version is a test. 200 tunes of
random notes, which nobody can continue who does not know them, are planted in
a token cache with the MuLan embeddings of 200 clips of a finished quickstart.
A semantic stage is trained on nothing else, and both these clips and unseen
tunes are audited.

  PYTHONPATH=. python tests/integration/planted_memorization.py \
    --quickstart=runs/quickstart --output_dir=runs/planted
"""

import argparse
import dataclasses
import json
import pathlib

import numpy as np

from musiclm_jax.cli import main as main_lib
from musiclm_jax.data import token_cache, token_cache_writer
from musiclm_jax.systems import bundle

SEMANTIC = "stage_semantic"
NOTE_FRAMES = 10


def tune(clip, config, secs, rng):
  """A clip with its MuLan embeddings and tokens of random notes of 0.4 s."""
  stream = config.stream("semantic")
  frames = stream.num_frames(secs)
  # No note follows itself: how long one is held is not what is asked.
  jumps = rng.integers(1, stream.codebook_size, -(-frames // NOTE_FRAMES))
  notes = np.cumsum(jumps) % stream.codebook_size
  arrays = {
    "semantic": np.repeat(notes, NOTE_FRAMES)[:frames, None],
    token_cache.EMBEDDINGS: clip.arrays[token_cache.EMBEDDINGS],
  }
  return dataclasses.replace(clip, arrays=arrays)


def plant(source, directory, num_clips, secs):
  """Writes a cache: so many tunes to train on, others to compare with."""
  reader = token_cache.TokenCacheReader(source)
  clips = {
    "train": [*reader["train"], *reader["validation"]][:num_clips],
    "test": list(reader["test"]),
  }
  clips["validation"] = clips["test"][:16]
  streams = [s for s in reader.config.streams if s.name != "acoustic"]
  marks = {s.name: reader.config.fingerprints[s.name] for s in streams}
  config = dataclasses.replace(
    reader.config,
    streams=streams,
    fingerprints=marks,
    inputs=f"{num_clips} planted tunes of {secs:g} s",
  )
  writer = token_cache_writer.TokenCacheWriter(
    directory, config, reader.mulan_codebooks
  )
  rng = np.random.default_rng(0)
  for split, found in clips.items():
    for shard in writer.pending(split, len(found)):
      part = found[shard.start : shard.end]
      writer.write_shard(shard, [tune(one, config, secs, rng) for one in part])
  writer.finish({split: len(found) for split, found in clips.items()})
  return {split: len(found) for split, found in clips.items()}


def run(*arguments):
  """A verb of the command line; stops where it fails."""
  code = main_lib.main([str(one) for one in arguments])
  if code:
    raise SystemExit(f"{arguments[0]}: exit code {code}")


def main():
  """Plants, trains, bundles and audits."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--quickstart", type=pathlib.Path, required=True)
  parser.add_argument("--output_dir", type=pathlib.Path, required=True)
  parser.add_argument("--num_clips", type=int, default=200)
  parser.add_argument("--secs", type=float, default=6.0)
  parser.add_argument("--train_steps", type=int, default=1400)
  args = parser.parse_args()
  root = args.output_dir
  sizes = plant(
    args.quickstart / "tokens", root / "tokens", args.num_clips, args.secs
  )
  print("planted", json.dumps(sizes), flush=True)
  run(
    "train",
    "--gin_file=experiments/musiclm_semantic_tiny_score_corpus.gin",
    f"--gin.TRAIN_STEPS={args.train_steps}",
    f"--gin.CACHE_DIR='{root / 'tokens'}'",
    f"--gin.EVAL_EVERY_STEPS={args.train_steps}",
    f"--gin.CHECKPOINT_EVERY_STEPS={args.train_steps}",
    f"--gin.stages.semantic_stage.crop_secs={args.secs}",
    # By heart: every clip has a name, and nothing is hidden or blurred.
    "--gin.stages.semantic_stage.num_mulan_codebooks=12",
    "--gin.token_lm.TokenLMConfig.conditioning_dropout_rate=0.0",
    "--gin.transformer.TransformerConfig.dropout_rate=0.0",
    "--gin.transformer.TransformerConfig.num_layers=2",
    "--gin.optimizers.OptimizerConfig.weight_decay=0.0",
    f"--model_dir={root / 'model'}",
    f"--export_dir={root / SEMANTIC}",
  )
  source = args.quickstart / "artifacts"
  parts = {name: source / name for name in bundle.PARTS}
  bundle.write_bundle(root / "bundle", parts | {SEMANTIC: root / SEMANTIC})
  for split in ("train", "test"):
    run(
      "memorization",
      f"--bundle={root / 'bundle'}",
      f"--cache_dir={root / 'tokens'}",
      f"--output_dir={root / f'audit_{split}'}",
      f"--split={split}",
      "--prompt_tokens=0,5,10,25",
    )


if __name__ == "__main__":
  main()
