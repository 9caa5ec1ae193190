# SPDX-License-Identifier: Apache-2.0
"""Launchers: what they print is valid and does what it says."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import yaml

from musiclm_jax.cli import (
  launch,
  launch_config,
  launch_manifest,
  launch_scripts,
)
from musiclm_jax.cli import main as main_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND = (
  "--",
  "train",
  "--gin_file=x.gin",
  "--gin.NAME='a b'",
  "--model_dir=/gcs/bucket-1/it's $HOME",
)
CLOUD = ("--name=job", "--project=some-project", "--zone=us-east5-a")
TPU = (*CLOUD, "--accelerator_type=v5p-128", "--source=gs://b/m.tar.gz")
GKE = ("gke", "--name=job", "--accelerator_type=v5p-128", "--image=registry/i")
SLURM = ("slurm", "--name=job", "--python=/env/bin/python")
UP = {
  "tpu_vm": ("tpu_vm", *TPU, "--accelerator_type=v6e-8"),
  "slice": ("slice", *TPU),
  "queued": ("queued", *TPU, "--spot", "--bucket=bucket-1"),
  "gke": (*GKE, "--bucket=bucket-1"),
  "slurm": SLURM,
}
ANY = {
  "tpu_vm": ("tpu_vm", *CLOUD),
  "slice": ("slice", *CLOUD),
  "queued": ("queued", *CLOUD),
  "gke": ("gke", "--name=job"),
  "slurm": ("slurm", "--name=job"),
}


def printed(capsys, *argv):
  assert main_lib.main(["launch", *argv]) == 0
  return capsys.readouterr().out


def check_shell(text):
  subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def files_of(text, folder):
  """Runs only the part of a script that writes files."""
  end = text.index("\nMUSICLM_END\n") + len("\nMUSICLM_END\n")
  subprocess.run(["bash", "-c", text[:end]], cwd=folder, check=True)


@pytest.mark.parametrize("kind", launch.KINDS)
def test_every_action_prints_shell(kind, capsys, tmp_path):
  for action in launch.KINDS[kind][0]:
    argv = UP[kind] if action in ("up", "watch") else ANY[kind]
    text = printed(capsys, *argv, f"--action={action}", *COMMAND)
    check_shell(text)
    assert "job" in text
  text = printed(capsys, *UP[kind], *COMMAND)
  files_of(text, tmp_path)
  (path,) = tmp_path.iterdir()
  if path.suffix == ".yaml":
    manifest = yaml.safe_load(path.read_text())
    (job,) = manifest["spec"]["replicatedJobs"]
    (box,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert box["command"] == ["python", "-m", "musiclm_jax.cli.main"]
    assert tuple(box["args"]) == COMMAND[1:]
  else:
    check_shell(path.read_text())
    assert "-m musiclm_jax.cli.main" in path.read_text()


def test_manifest_restarts_on_42_and_143_but_not_on_1():
  accelerator = launch_config.parse_accelerator("v5litepod-256")
  manifest = yaml.safe_load(
    launch_manifest.to_yaml(
      launch_manifest.jobset(
        *("job", accelerator, 4, "image", ("train", "--x=on: #yes")),
        environment={"A": "1", "B": "true"},
        spot=True,
      )
    )
  )
  spec = manifest["spec"]
  (rule,) = spec["failurePolicy"]["rules"]
  assert rule["action"] == "FailJobSet"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  (slices,) = spec["replicatedJobs"]
  assert slices["replicas"] == 4
  job = slices["template"]["spec"]
  assert job["backoffLimit"] == 0
  assert job["completions"] == job["parallelism"] == 64
  codes = [
    one["onExitCodes"]
    for one in job["podFailurePolicy"]["rules"]
    if one["action"] == "FailJob"
  ]
  assert [(c["operator"], c["values"]) for c in codes] == [("In", [1, 2])]
  pod = job["template"]["spec"]
  assert pod["restartPolicy"] == "Never"
  assert codes[0]["containerName"] == pod["containers"][0]["name"]
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "16x16"
  box = pod["containers"][0]
  assert box["args"] == ["train", "--x=on: #yes"]
  assert box["env"] == [
    {"name": "A", "value": "1"},
    {"name": "B", "value": "true"},
  ]
  assert box["resources"]["limits"]["google.com/tpu"] == 4


@pytest.mark.parametrize(
  "name, chips, topology, hosts",
  [
    ("v4-32", 16, "2x2x4", 4),
    ("v5p-8", 4, "2x2x1", 1),
    ("v5p-128", 64, "4x4x4", 16),
    ("v5p-8192", 4096, "16x16x16", 1024),
    ("v5litepod-8", 8, "2x4", 1),
    ("v5litepod-256", 256, "16x16", 64),
    ("v6e-16", 16, "4x4", 4),
  ],
)
def test_accelerator_types(name, chips, topology, hosts):
  found = launch_config.parse_accelerator(name)
  assert (found.num_chips, found.topology) == (chips, topology)
  assert found.num_hosts == hosts


@pytest.mark.parametrize(
  "argv, expected",
  [
    ((*UP["slice"],), "nothing to run"),
    ((*UP["slice"], "--", "trian"), "did you mean 'train'"),
    ((*UP["slice"], "--", "train", "--model_dir=gs://b/x"), "/gcs/NAME"),
    ((*UP["slice"], "--name=My_Job", *COMMAND), "--name=My_Job"),
    ((*UP["slice"], "--zone=here", *COMMAND), "--zone=here"),
    ((*UP["slice"], "--env=A", *COMMAND), "--env=A"),
    ((*UP["slice"], "--accelerator_type=v5p-12", *COMMAND), "v5p-12"),
    ((*UP["slice"], "--accelerator_type=v5x-16", *COMMAND), "did you mean"),
    ((*UP["slice"], "--spot", "--reserved", *COMMAND), "at most one"),
    ((*UP["queued"], "--bucket=gs://b", *COMMAND), "without gs://"),
    (("tpu_vm", *TPU, *COMMAND), "16 hosts"),
    (("slice", *CLOUD, *COMMAND), "--accelerator_type is missing"),
    (("queued", *TPU, "--action=watch", *COMMAND), "--bucket is missing"),
    (("gke", "--name=job", *COMMAND), "--accelerator_type is missing"),
    ((*GKE, "--num_slices=0", *COMMAND), "--num_slices=0"),
    (("slurm", "--name=job", *COMMAND), "--python is missing"),
    ((*SLURM, "--num_nodes=0", *COMMAND), "--num_nodes=0"),
  ],
)
def test_bad_arguments_are_one_line(argv, expected, capsys):
  assert main_lib.main(["launch", *argv]) == 1
  out, err = capsys.readouterr()
  assert not out
  assert err.startswith("musiclm: ") and len(err.splitlines()) == 1
  assert expected in err


def test_other_verbs_take_no_command(capsys):
  with pytest.raises(SystemExit):
    main_lib.main(["config", "--gin_file=x.gin", "--", "train"])
  assert "takes no command" in capsys.readouterr().err


def fake(folder, name, body):
  path = folder / name
  path.write_text(f"#!/usr/bin/env bash\n{body}\n")
  path.chmod(0o755)
  return str(path)


# Ends with the codes of file `codes`, one line for each start.
SCRIPTED = """
here=$(dirname "$0")
printf '%s\\n' "$@" >>"$here/seen"
code=$(head -n 1 "$here/codes"); sed -i 1d "$here/codes"
exit "$code"
"""


def run_host(folder, codes, max_restarts=5):
  python = fake(folder, "python", SCRIPTED)
  (folder / "codes").write_text("".join(f"{code}\n" for code in codes))
  text = launch_scripts.host_script(
    "job", "", "", COMMAND[1:], {"GREETING": "a 'b'"}, max_restarts
  )
  result = subprocess.run(
    ["bash", "-c", text],
    env={
      **os.environ,
      "MUSICLM_PYTHON": python,
      "MUSICLM_ROOT": str(folder),
      "MUSICLM_RESTART_SECS": "0",
    },
    timeout=60,
  )
  return result.returncode, len((folder / "codes").read_text().split())


@pytest.mark.parametrize(
  "codes, expected, left",
  [
    ([42, 143, 134, 0], 0, 0),
    ([1, 0], 1, 1),
    ([2, 0], 2, 1),
    ([42] * 7 + [0], 42, 2),
  ],
)
def test_hosts_run_again_only_when_it_may_help(codes, expected, left, tmp_path):
  assert run_host(tmp_path, codes) == (expected, left)
  seen = (tmp_path / "seen").read_text().split("\n")
  assert tuple(seen[2:6]) == COMMAND[1:]


def test_sigterm_reaches_the_job_and_its_code_comes_back(tmp_path):
  python = fake(
    tmp_path,
    "python",
    f"trap 'sleep 0.3; exit 143' TERM; touch {tmp_path}/up; "
    "while :; do sleep 0.05; done",
  )
  text = launch_scripts.host_script("job", "", "", ("train",), {}, 5)
  process = subprocess.Popen(
    ["bash", "-c", text],
    env={**os.environ, "MUSICLM_PYTHON": python},
  )
  for _ in range(200):
    if (tmp_path / "up").exists():
      break
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=30) == 143


def test_watch_asks_again_and_ends_with_the_job(tmp_path, capsys):
  # The resource is absent, then suspended, then active until the job ends.
  fake(
    tmp_path,
    "gcloud",
    f"""
echo "$*" >>{tmp_path}/calls
case "$*" in
  *"storage cat"*) cat {tmp_path}/mark ;;
  *describe*)
    state=$(head -n 1 {tmp_path}/states); sed -i 1d {tmp_path}/states
    [ "$state" = done ] && echo 0 >{tmp_path}/mark
    echo "${{state#absent}}" ;;
esac""",
  )
  (tmp_path / "states").write_text("absent\nSUSPENDED\nabsent\nACTIVE\ndone\n")
  text = printed(capsys, *UP["queued"], "--action=watch", *COMMAND)
  result = subprocess.run(
    ["bash", "-c", text],
    cwd=tmp_path,
    env={
      **os.environ,
      "PATH": f"{tmp_path}:{os.environ['PATH']}",
      "MUSICLM_POLL_SECS": "0",
    },
    timeout=60,
  )
  assert result.returncode == 0
  calls = (tmp_path / "calls").read_text().splitlines()
  kinds = [
    call.split()[3]
    for call in calls
    if "queued-resources" in call and "describe" not in call
  ]
  assert kinds == ["create", "delete", "create"]
  assert all("--project=some-project" in c for c in calls if "tpus" in c)


def run_slurm(folder, codes, restarts="0"):
  python = fake(folder, "python", SCRIPTED)
  (folder / "codes").write_text("".join(f"{code}\n" for code in codes))
  # Tasks one after the other; srun ends with the highest code.
  fake(
    folder,
    "srun",
    'worst=0; for i in 1 2; do "$@"; c=$?; [ $c -gt $worst ] && worst=$c; '
    "done; exit $worst",
  )
  fake(folder, "scontrol", f'echo "$*" >>{folder}/requeued')
  text = launch_scripts.slurm_script(
    "job", {"nodes": "1", "requeue": ""}, python, ("train",), {}, 3
  )
  result = subprocess.run(
    ["bash", "-c", text],
    env={
      **os.environ,
      "PATH": f"{folder}:{os.environ['PATH']}",
      "SLURM_JOB_ID": "7",
      "SLURM_SUBMIT_DIR": str(folder),
      "SLURM_RESTART_COUNT": restarts,
    },
    timeout=60,
  )
  return result.returncode, (folder / "requeued").exists()


@pytest.mark.parametrize(
  "codes, restarts, expected",
  [
    ([0, 0], "0", (0, False)),
    ([42, 143], "0", (143, True)),
    ([1, 42], "0", (1, False)),
    ([42, 42], "3", (42, False)),
  ],
)
def test_slurm_requeues_unless_one_task_had_a_user_error(
  codes, restarts, expected, tmp_path
):
  assert run_slurm(tmp_path, codes, restarts) == expected


def test_go_runs_what_is_printed(tmp_path, monkeypatch, capfd):
  fake(tmp_path, "kubectl", f'echo "$*" >>{tmp_path}/calls; exit 3')
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  monkeypatch.chdir(tmp_path)
  assert main_lib.main(["launch", *UP["gke"], "--go", *COMMAND]) == 3
  assert (tmp_path / "calls").read_text() == "apply -f job.yaml\n"
  assert yaml.safe_load((tmp_path / "job.yaml").read_text())["kind"] == "JobSet"


def test_scripts_reach_the_launchers_without_packages():
  scripts = [ROOT / "launch" / f"{kind}.sh" for kind in launch.KINDS]
  for script in scripts:
    check_shell(script.read_text())
    assert f"launch {script.stem}" in script.read_text()
  code = (
    "import sys; from musiclm_jax.cli import main; "
    f"main.main({['launch', *UP['queued'], *COMMAND]!r}); "
    "sys.exit(bool({'jax', 'numpy', 'gin', 'absl'} & set(sys.modules)))"
  )
  subprocess.run(
    [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True
  )
