# SPDX-License-Identifier: Apache-2.0
"""Malformed inputs against the command line and the studio, and a verdict.

  python tests/integration/cli_fuzz_rounds.py --count=340 --studio_count=160 \\
    --seed=0 --workdir=DIR

Prints what should not have been, and counts of exit codes by kind of input. It
exits with 1 if a traceback reached the user, a command failed without a line
of its own, something was written outside of the work directory, or the studio
does not answer any more. `cli_fuzz_test.py` runs a few of them.
"""

import argparse
import collections
import os
import pathlib
import sys

sys.path[:0] = [
  str(pathlib.Path(__file__).resolve().parents[2]),
  str(pathlib.Path(__file__).resolve().parents[1] / "support"),
]


def commands(
  workdir: pathlib.Path, count: int, seed: int, has_recognize: bool = True
) -> list[dict]:
  """Runs malformed command lines.

  Args:
    workdir: an empty folder.
    count: of them.
    seed: of them.
    has_recognize: see `cli_fuzz.Fuzz`.

  Returns:
    See `cli_fuzz.Fuzz.case`.
  """
  import cli_fuzz
  import jax
  import small_bundle
  from jax.experimental.compilation_cache import compilation_cache

  # What happens to be well formed is made, with little effort on compiling.
  jax.config.update("jax_disable_most_optimizations", True)
  settings = {
    "jax_compilation_cache_dir": str(workdir / "fuzz/a/b/work/compiled"),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  try:
    bundle = small_bundle.write(workdir / "small")
    fuzz = cli_fuzz.Fuzz(workdir / "fuzz", bundle, seed, has_recognize)
    return [fuzz.case() for _ in range(count)]
  finally:
    jax.config.update("jax_disable_most_optimizations", False)
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()


def studio(workdir: pathlib.Path, count: int, seed: int) -> list[str]:
  """What odd requests did to a studio; it must still make music then."""
  import httpx
  import small_bundle
  import small_studio
  import studio_fuzz

  bundle, folder = small_bundle.write(workdir / "small"), workdir / "studio"
  with small_studio.running(bundle, folder) as (url, work):
    answers = studio_fuzz.fuzz(url, count, len(studio_fuzz.FORM), seed)
    print({kind: len(texts) for kind, texts in answers.items()})
    wrong = studio_fuzz.harm(answers, folder, work)
    with httpx.Client(base_url=url, timeout=120) as client:
      answer = studio_fuzz.call(client, "generate", studio_fuzz.FORM)
    if "Done in" not in answer:
      wrong.append(f"the studio does not answer any more: {answer[:200]}")
  return wrong


def main(argv: list[str] | None = None) -> int:
  """Entry point."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--count", type=int, default=340)
  parser.add_argument("--studio_count", type=int, default=160)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args(argv)
  workdir = pathlib.Path(args.workdir)
  workdir.mkdir(parents=True)
  num_wrong = 0
  codes: dict[str, collections.Counter] = {}
  found = commands(workdir / "cli", args.count, args.seed) if args.count else []
  for case in found:
    codes.setdefault(case["kind"], collections.Counter())[case["code"]] += 1
    if case["wrong"]:
      num_wrong += 1
      print("WRONG", case["wrong"], case["arguments"], case["text"][-3000:])
  for kind, counted in codes.items():
    print(kind, dict(sorted(counted.items())))
  for case in sorted(found, key=lambda case: -case["secs"])[:3]:
    print(f"{case['secs']:.1f} s", case["kind"], str(case["arguments"])[:300])
  if args.studio_count:
    for text in studio(workdir / "page", args.studio_count, args.seed):
      num_wrong += 1
      print("WRONG", text)
  print("PASS" if not num_wrong else f"FAIL: {num_wrong}")
  return min(num_wrong, 1)


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  sys.exit(main())
