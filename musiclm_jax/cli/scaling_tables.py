# SPDX-License-Identifier: Apache-2.0
"""Regenerates the golden tables of docs/scaling.md, all or a part.

  python -m musiclm_jax.cli.scaling_tables [--only TEXT ...] [--docs FOLDER]

Each case is a `musiclm check`; results go to scaling.json after every case,
so a stopped run goes on with `--missing`.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from musiclm_jax.partitioning import topologies

TOPOLOGIES = (
  ("v4-32", 1),
  ("v5e-256", 1),
  ("v5p-128", 1),
  ("v5p:16x16x16", 1),
  ("v6e-256", 1),
  ("v5e-256", 4),
)
_TRAINABLES = (
  "soundstream",
  "w2v_bert",
  "mulan",
  "mulan_ast",
  "melody",
  "semantic",
  "coarse",
  "fine",
)
_LARGER = ("large", "xl")
_EXTRA = (("semantic_xl", "v5e-16", 1),)
_KEPT = (
  "fits",
  "peak_bytes",
  "parameters",
  "flops_per_step",
  "executed_flops_per_chip",
  "hbm_bytes_accessed",
  "collective_bytes",
  "bound",
  "roofline_seconds",
  "predicted_mfu",
  "pessimistic_mfu",
  "num_devices",
  "mesh",
  "global_batch_size",
  "num_microbatches",
  "remat",
  "over_bytes",
  "seconds",
  "compile_cpu_seconds",
)
_BEGIN, _END = "<!-- tables: begin -->", "<!-- tables: end -->"


@dataclasses.dataclass(frozen=True)
class Case:
  """One row.

  Attributes:
    name: of the trainable and its size.
    gin_files: of the experiment.
    topology: as `musiclm check` takes it.
    num_slices: slices.
  """

  name: str
  gin_files: tuple[str, ...]
  topology: str
  num_slices: int

  @property
  def key(self) -> str:
    slices = f"{self.num_slices} x " if self.num_slices > 1 else ""
    return f"{self.name} on {slices}{self.topology}"


def _gin_files(name: str) -> tuple[str, ...]:
  base, _, size = name.rpartition("_")
  if size in _LARGER:
    return (
      f"experiments/musiclm_{base}_paper_audio_folder.gin",
      f"sizes/stage_{size}.gin",
    )
  return (f"experiments/musiclm_{name}_paper_audio_folder.gin",)


def cases() -> Iterator[Case]:
  """All rows of the tables."""
  names = [*_TRAINABLES, *(f"semantic_{size}" for size in _LARGER)]
  for name in names:
    for topology, num_slices in TOPOLOGIES:
      yield Case(name, _gin_files(name), topology, num_slices)
  for name, topology, num_slices in _EXTRA:
    yield Case(name, _gin_files(name), topology, num_slices)


def measure(case: Case) -> dict[str, Any]:
  """Compiles one case; keeps what the tables show and the tests compare."""
  from musiclm_jax.cli import check_output, checking, children

  request = checking.Request(
    case.gin_files, (), topologies.parse(case.topology, case.num_slices)
  )
  try:
    result = check_output.to_json(children.call(checking.check, request))
  except (ValueError, RuntimeError) as error:
    return {"error": str(error).strip().splitlines()[0]}
  return {name: result[name] for name in _KEPT}


# --- The page.


def _row(case: Case, values: Mapping[str, Any]) -> str:
  if "error" in values:
    return f"| {case.key} | {values['error']} |" + " |" * 8
  gib = topologies.GIB
  mesh = "x".join(str(size) for size in values["mesh"].values())
  fits = "yes"
  if not values["fits"]:
    fits = f"**no**, {values['over_bytes'] / gib:.2f} GiB over"
  network = values["seconds"]["ici"] + values["seconds"]["dcn"]
  return " | ".join(
    [
      f"| {case.key}",
      mesh,
      f"{values['global_batch_size']} / {values['num_microbatches']}",
      fits,
      f"{values['peak_bytes'] / gib:.2f}",
      f"{values['executed_flops_per_chip'] / 1e12:.2f}",
      f"{values['hbm_bytes_accessed'] / 1e9:.1f}",
      f"{values['collective_bytes'] / 1e9:.2f} "
      f"({network / values['roofline_seconds']:.0%})",
      f"{values['roofline_seconds'] * 1e3:.1f}, {values['bound']}",
      f"{values['predicted_mfu']:.1%} / {values['pessimistic_mfu']:.1%} |",
    ]
  )


def page(golden: Mapping[str, Mapping[str, Any]]) -> str:
  """The tables as Markdown."""
  lines = []
  for name in dict.fromkeys(case.name for case in cases()):
    mine = [c for c in cases() if c.name == name and c.key in golden]
    if not mine:
      continue
    counts = {golden[c.key].get("parameters") for c in mine} - {None}
    count = f", {max(counts):,} parameters" if counts else ""
    lines += [
      f"### {name}{count}",
      "",
      "| case | mesh | batch / microbatches | fits | peak GiB | TFLOP | "
      "HBM GB | collective GB (share of roofline) | roofline ms, bound | "
      "MFU / if nothing overlaps |",
      "|---|---|---|---|---|---|---|---|---|---|",
      *(_row(case, golden[case.key]) for case in mine),
      "",
    ]
  return "\n".join(lines)


def write_page(folder: pathlib.Path, golden: Mapping[str, Any]) -> None:
  """Puts the tables between the marks of scaling.md."""
  path = folder / "scaling.md"
  text = path.read_text()
  before, _, rest = text.partition(_BEGIN)
  _, _, after = rest.partition(_END)
  path.write_text(f"{before}{_BEGIN}\n{page(golden)}{_END}{after}")


def read(folder: pathlib.Path) -> dict[str, Any]:
  """Golden values by the key of their case."""
  path = folder / "scaling.json"
  return json.loads(path.read_text()) if path.exists() else {}


def main(argv: list[str] | None = None) -> int:
  """Measures and writes."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--only", nargs="*", default=[], metavar="TEXT")
  parser.add_argument("--missing", action="store_true")
  parser.add_argument("--docs", default="docs", type=pathlib.Path)
  args = parser.parse_args(argv)
  topologies.prepare_environment()
  golden = read(args.docs)
  for case in cases():
    wanted = all(text in case.key for text in args.only)
    if not wanted or (args.missing and case.key in golden):
      continue
    golden[case.key] = measure(case)
    text = json.dumps(golden, indent=1, sort_keys=True)
    (args.docs / "scaling.json").write_text(text + "\n")
    write_page(args.docs, golden)
    print(_row(case, golden[case.key]), flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
