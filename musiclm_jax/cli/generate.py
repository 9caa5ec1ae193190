# SPDX-License-Identifier: Apache-2.0
"""Prompts to music: one WAV file and one JSON sidecar per prompt.

A prompt is a text, an audio file or a weighted mixture. Of several candidates
MuLan keeps the best (docs/generating.md).

With --melody, every item also takes the melody of an audio file, repeated where
the music is longer. The bundle needs a stage for it
(docs/melody_conditioning.md).

The sidecar holds prompt, seed, sampling, fingerprints and versions; the file
itself says most of it (musiclm describe). With --output_dir, files that are
there already with the same settings are kept, so that a killed job goes on.
"""

import argparse

from musiclm_jax.cli import jobs

EPILOG = """examples:
  musiclm generate --bundle=runs/quickstart/bundle --seconds=10 --seed=0 \\
    --prompt="A gentle solo flute, slow and high." --output=out.wav
  musiclm generate --bundle=runs/quickstart/bundle --seconds=30 \\
    --prompts=prompts.txt --output_dir=samples
  musiclm generate --bundle=runs/quickstart/bundle --num_candidates=8 \\
    --mix="0.7:A flute." --mix=0.3:this.wav --output=out.wav
  musiclm generate --bundle=runs/melody/bundle --melody=hum.wav \\
    --prompt="A loud brass band." --output=out.wav"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  jobs.add_arguments(parser, jobs.GenerateJob)


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import generation

  generation.generate(jobs.build(jobs.GenerateJob, args))
  return 0
