# SPDX-License-Identifier: Apache-2.0
"""The `musiclm` command: picks a verb, runs it, turns errors into exit codes.

Nothing heavy is imported before a verb is chosen, so `--help` is instant.
Exit codes: 0 done; 1 user error; 42 retry (infrastructure); 143 pre-empted
and saved.
"""

import argparse
import errno
import importlib
import os
import sys
import traceback

from musiclm_jax import __version__
from musiclm_jax.cli import arguments

# verb -> (module, one line of help)
VERBS = {
  "prepare": ("prepare", "build a corpus: demo scores or a folder of audio"),
  "train": ("train", "train one part from a gin experiment, resuming"),
  "export": ("export", "freeze a trained part as an artefact"),
  "export_decode": ("export_decode", "the stages of a bundle as StableHLO"),
  "import": ("import_encoder", "a public encoder as a semantic tokenizer"),
  "import_tagger": ("import_tagger", "musicnn's weights as a judge of music"),
  "tokenize": ("tokenize", "turn a corpus into a token cache"),
  "bundle": ("bundle", "collect artefacts and stages for generation"),
  "generate": ("generate", "texts, audio or mixtures of them to music"),
  "studio": ("studio", "a page on this machine to generate with"),
  "describe": ("describe", "how a generated file was made"),
  "codec": ("codec", "audio files to files of acoustic codes and back"),
  "embed": ("embed", "audio files and texts to MuLan vectors"),
  "search": ("search", "the audio nearest to a text or to other audio"),
  "evaluate": ("evaluate", "score tokenizers, stages and samples"),
  "ablate": ("ablate", "variants of a system on the same prompts"),
  "faults": ("faults", "do metrics get worse with known faults"),
  "melody": ("melody", "does a bundle take the melodies it is given"),
  "seams": ("seams", "where windows of long items join, and memory"),
  "recognize": ("recognize", "are held-out melodies known when changed"),
  "bias": ("bias", "what a corpus and unasked-for music are made of"),
  "probe": ("probe", "what tokens tell of pitch, harmony, tempo, timbre"),
  "mulan": ("mulan", "retrieval, tagging and probes of a MuLan"),
  "listen": ("listen", "a blinded listening test: build, serve, score"),
  "memorization": ("memorization", "are training clips known by heart"),
  "report": ("report", "write the page that shows a run"),
  "config": ("config", "print a resolved gin configuration"),
  "check": ("check", "compile a step for a TPU topology: fit and cost"),
  "bench": ("bench", "time the loader or the train step alone"),
  "doctor": ("doctor", "check hosts, devices, storage and clocks"),
  "launch": ("launch", "print or run the commands that start a cluster job"),
  "quickstart": ("quickstart", "everything above at size tiny, in order"),
}
DEBUG_VARIABLE = "MUSICLM_DEBUG"
_TUNABLES = "GLIBC_TUNABLES"


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="musiclm",
    description="MusicLM in JAX: train, run and evaluate text-to-music.",
    epilog="`musiclm VERB --help` shows options and an example.",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--version", action="version", version=f"musiclm_jax {__version__}"
  )
  verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
  for name, (_, text) in VERBS.items():
    verbs.add_parser(name, help=text, add_help=False)
  return parser


def _split_gin(argv: list[str]) -> tuple[list[str], list[str]]:
  """Takes `--gin.KEY=value` (T5X style) out of the arguments."""
  rest, overrides = [], []
  for argument in argv:
    if argument.startswith("--gin."):
      overrides.append(argument[len("--gin.") :])
    else:
      rest.append(argument)
  return rest, overrides


def _split_command(argv: list[str]) -> tuple[list[str], list[str]]:
  """Takes what stands behind `--` out of the arguments."""
  if "--" not in argv:
    return argv, []
  place = argv.index("--")
  return argv[:place], argv[place + 1 :]


def run(argv: list[str]) -> int:
  """Runs one verb; raises what goes wrong.

  Args:
    argv: arguments after the program name.

  Returns:
    The exit code.
  """
  parser = _parser()
  known, _ = parser.parse_known_args(argv[:1])
  module_name, text = VERBS[known.verb]
  module = importlib.import_module(f"musiclm_jax.cli.{module_name}")
  verb = argparse.ArgumentParser(
    prog=f"musiclm {known.verb}",
    description=module.__doc__.split("\n\n", 1)[0].strip() or text,
    epilog=module.EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  module.add_arguments(verb)
  argv, command = _split_command(argv)
  rest, overrides = _split_gin(argv[1:])
  # argparse takes an optional positional behind options for missing, else.
  mixed = getattr(module, "MIXED_ARGUMENTS", False)
  args = (verb.parse_intermixed_args if mixed else verb.parse_args)(rest)
  args.command = command
  if command and not getattr(module, "TAKES_COMMAND", False):
    verb.error(f"-- {command[0]}: this verb takes no command")
  args.gin_overrides = overrides
  args.argv = argv
  if overrides and not hasattr(args, "gin_file"):
    verb.error(f"--gin.{overrides[0]}: this verb reads no gin file")
  if not getattr(module, "TAKES_URLS", False):
    arguments.refuse_urls(args)
  return module.main(args) or 0


def _first_line(error: BaseException) -> str:
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__


def _exit_code(error: Exception) -> int | None:
  """Exit code of an error with a message for people; None for a bug."""
  if hasattr(error, "exit_code"):
    return error.exit_code
  if isinstance(error, OSError) and error.errno in (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
  ):
    return 42
  if isinstance(error, (ValueError, OSError, FloatingPointError)):
    return 1
  return None


def report(error: Exception) -> int:
  """Prints an error as one line, a bug with its traceback; its exit code."""
  code = _exit_code(error)
  if code is None or os.environ.get(DEBUG_VARIABLE):
    traceback.print_exception(error)
  if code is None:
    print(
      f"musiclm: internal error: {type(error).__name__}: {_first_line(error)}",
      file=sys.stderr,
    )
    return 1
  print(f"musiclm: {_first_line(error)}", file=sys.stderr)
  return code


def _start_with_huge_pages() -> None:
  """Starts this process again with huge pages, where glibc has the choice.

  XLA:CPU takes fresh memory for each call of a program, and the kernel clears
  it page by page. malloc reads the setting at the start of a process only.
  Whoever sets the variable, to whatever, has decided.
  """
  try:
    is_glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
  except (AttributeError, OSError, ValueError):
    return
  if not is_glibc or _TUNABLES in os.environ:
    return
  os.environ[_TUNABLES] = "glibc.malloc.hugetlb=1"
  sys.stdout.flush()
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main(argv: list[str] | None = None) -> int:
  """Entry point: one line on standard error and an exit code for any error."""
  # TensorFlow's C++ start-up notes would bury ours.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  try:
    return run(sys.argv[1:] if argv is None else argv)
  except KeyboardInterrupt:
    print("musiclm: interrupted", file=sys.stderr)
    return 130
  except BrokenPipeError:
    return 1
  except Exception as error:
    return report(error)


def start() -> int:
  """Entry point of a process of its own, which `main` need not have."""
  _start_with_huge_pages()
  return main()


if __name__ == "__main__":
  sys.exit(start())
