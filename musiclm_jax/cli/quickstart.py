# SPDX-License-Identifier: Apache-2.0
"""Everything at size tiny: corpus, trainings, music, scores, a page.

Run it again to go on where it stopped; finished steps are not redone.
"""

import argparse
import json
import os
import pathlib

from musiclm_jax.cli import steps as steps_lib
from musiclm_jax.core import atomic_files

EPILOG = """example:
  musiclm quickstart --workdir=runs/quickstart"""

_EXPERIMENT = "experiments/musiclm_{}_tiny_score_corpus.gin"
_BERT = "models/mulan_bert.gin"
_STAGES = ("semantic", "coarse", "fine")
NUM_PROMPTS = 45


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  parser.add_argument(
    "--workdir",
    default="runs/quickstart",
    help="everything is written below it (default: %(default)s)",
  )
  parser.add_argument(
    "--size", default="tiny", help="of the corpus (default: %(default)s)"
  )
  parser.add_argument(
    "--corpus_share",
    type=float,
    default=1.0,
    help="build only such a share of the corpus, to try things out",
  )
  parser.add_argument(
    "--step_scale",
    type=float,
    default=1.0,
    help="multiplies the training steps of every part (tests use 0.01)",
  )
  parser.add_argument(
    "--num_prompts",
    type=int,
    default=NUM_PROMPTS,
    help="held-out captions to generate 10 s for (default: %(default)s)",
  )
  parser.add_argument(
    "--text_tower",
    default="",
    metavar="DIR",
    help="folder of a BERT that MuLan's text tower starts from; without it the "
    "tower starts at random",
  )


# Optimizer steps of each part, meant for 15 minutes on 2 cores in all; what
# was measured, and with which steps, is in docs/quickstart_results.md.
TRAIN_STEPS = {
  "soundstream": 640,
  "w2v_bert": 380,
  "mulan": 370,
  "semantic": 270,
  "coarse": 690,
  "fine": 120,
}

# Share of the codec's steps before its critics join.
CRITICS_START = 0.9


def _gin_value(value: int | pathlib.Path) -> str:
  return repr(value if isinstance(value, int) else str(value))


def _from_caller(path: str) -> pathlib.Path:
  """An absolute path; launch/quickstart.sh has changed into the checkout."""
  return (
    pathlib.Path(os.environ.get("MUSICLM_CALLER_DIR", ".")) / path
  ).absolute()


def plan(args: argparse.Namespace, root: pathlib.Path) -> list[steps_lib.Step]:
  """The steps, in an order in which they could run one by one."""
  name = args.size
  if args.corpus_share != 1:
    name += f"_share{args.corpus_share:g}"
  corpus = root / "data" / "score_corpus" / name / "1.1.0"
  text, tokens = root / "text", root / "tokens"
  parts, models = root / "artifacts", root / "models"
  prompts = root / "prompts.jsonl"

  def train(name, artifact, needs, bindings, gin_files=()):
    num_steps = max(4, round(TRAIN_STEPS[name] * args.step_scale))
    return steps_lib.Step(
      f"train_{name}",
      (
        "train",
        f"--gin_file={_EXPERIMENT.format(name)}",
        *(f"--gin_file={path}" for path in gin_files),
        f"--gin.TRAIN_STEPS={num_steps}",
        *(
          f"--gin.{key}={_gin_value(value)}" for key, value in bindings.items()
        ),
        f"--model_dir={models / name}",
        f"--export_dir={parts / artifact}",
      ),
      needs,
    )

  on_corpus = {"CORPUS_DIR": corpus}
  # The critics join for the last part, also of a shortened training.
  codec_steps = max(4, round(TRAIN_STEPS["soundstream"] * args.step_scale))
  with_critics = {
    **on_corpus,
    "DISCRIMINATOR_START_STEP": round(CRITICS_START * codec_steps),
  }
  prepare_text = []
  if args.text_tower:  # It brings its vocabulary.
    with_text = {**on_corpus, "BERT_DIR": _from_caller(args.text_tower)}
  else:
    with_text = {**on_corpus, "TEXT_MODEL": text / "text.model"}
    prepare_text = [
      steps_lib.Step(
        "prepare_text",
        (
          *("prepare", "text_vocabulary", f"--corpus_dir={corpus}"),
          f"--output_dir={text}",
        ),
        ("prepare_corpus",),
      )
    ]
  steps = [
    steps_lib.Step(
      "prepare_corpus",
      (
        *("prepare", "score_corpus", f"--size={args.size}"),
        *(f"--share={args.corpus_share:g}", f"--data_dir={root / 'data'}"),
      ),
      num_cores=2,
    ),
    train("soundstream", "soundstream", ("prepare_corpus",), with_critics),
    *prepare_text,
    train(
      *("mulan", "mulan"),
      tuple(step.name for step in prepare_text) or ("prepare_corpus",),
      with_text,
      (_BERT,) if args.text_tower else (),
    ),
    train("w2v_bert", "semantic", ("prepare_corpus",), on_corpus),
    steps_lib.Step(
      "prepare_prompts",
      (
        *("prepare", "prompts", f"--corpus_dir={corpus}"),
        *(f"--num_prompts={args.num_prompts}", f"--output={prompts}"),
      ),
      ("prepare_corpus",),
    ),
    steps_lib.Step(
      "tokenize",
      (
        *("tokenize", f"--corpus_dir={corpus}", f"--artifact_dir={parts}"),
        f"--output_dir={tokens}",
      ),
      ("train_soundstream", "train_mulan", "train_w2v_bert"),
      num_cores=2,
    ),
    *(
      train(stage, f"stage_{stage}", ("tokenize",), {"CACHE_DIR": tokens})
      for stage in ("coarse", "fine", "semantic")
    ),
    steps_lib.Step(
      "bundle",
      (
        *("bundle", f"--artifact_dir={parts}"),
        f"--output_dir={root / 'bundle'}",
      ),
      tuple(f"train_{stage}" for stage in _STAGES),
    ),
  ]
  for secs, count in ((10, 0), (30, 1)):
    source = f"--prompts={prompts}"
    steps.append(
      steps_lib.Step(
        f"generate_{secs}s",
        (
          *("generate", f"--bundle={root / 'bundle'}", source),
          *((f"--max_prompts={count}",) if count else ()),
          *(f"--seconds={secs}", "--batch_size=15"),
          f"--output_dir={root / 'samples'}",
        ),
        ("bundle", "prepare_prompts"),
      )
    )
  steps += [
    steps_lib.Step(
      "evaluate",
      (
        *("evaluate", f"--bundle={root / 'bundle'}"),
        *(f"--corpus_dir={corpus}", f"--cache_dir={tokens}"),
        f"--samples_dir={root / 'samples'}",
        f"--output_dir={root / 'evaluation'}",
      ),
      ("generate_10s", "generate_30s"),
      num_cores=2,
    ),
    steps_lib.Step(
      "report", ("report", f"--workdir={root}"), ("evaluate",), num_cores=2
    ),
  ]
  return steps


def _add_timings(root: pathlib.Path) -> dict:
  """Completes summary.json: the report could not time itself."""
  path = root / "summary.json"
  summary = json.loads(path.read_text())
  summary["steps"] = steps_lib.finished(root)
  summary["peak_memory_bytes"] = steps_lib.peak_memory_bytes(root)
  atomic_files.write_text(path, json.dumps(summary, indent=2) + "\n")
  return summary


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  root = _from_caller(args.workdir)
  steps_lib.StepRunner(root, plan(args, root)).run()
  summary = _add_timings(root)
  for criterion in summary["criteria"]:
    mark = "pass" if criterion["passed"] else "FAIL"
    print(f"{mark}  {criterion['name']}: {criterion['text']}")
  print(f"samples: {root / 'samples'}")
  print(f"summary: {root / 'summary.json'}")
  print(f"report:  {root / 'report' / 'index.html'}")
  return 0
