# SPDX-License-Identifier: Apache-2.0
"""Text prompts to music: one WAV file and one JSON sidecar per prompt.

With --melody, every item also takes the melody of an audio file, repeated where
the music is longer. The bundle needs a stage for it
(docs/melody_conditioning.md).

The sidecar holds prompt, seed, temperatures, fingerprints and versions. With
--output_dir, files that are there already with the same settings are kept,
so that a killed job goes on.
"""

import argparse

from musiclm_jax.cli import jobs

EPILOG = """examples:
  musiclm generate --bundle=runs/quickstart/bundle --seconds=10 --seed=0 \\
    --prompt="A gentle solo flute, slow and high." --output=out.wav
  musiclm generate --bundle=runs/quickstart/bundle --seconds=30 \\
    --prompts=prompts.txt --output_dir=samples
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
