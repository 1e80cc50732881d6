"""Launch files parse, say how to start them, and start launchers by flags they have.

The machines that they are for are not here: commands such as srun are replaced by ones
that write down what they were given.
"""

import os
import pathlib
import re
import shlex
import subprocess

import pytest
import yaml
from absl import flags

from experiments import fliqs  # noqa: F401  (its flags)

FOLDER = pathlib.Path("scripts/launch")
FILES = sorted(FOLDER.iterdir())
SCRIPTS = [file for file in FILES if file.suffix == ".sh"]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_header_shows_the_command_and_every_flag_exists(file):
    text = file.read_text().replace("\\\n", " ")
    header = [line for line in text.splitlines() if line[:1] == "#"]
    assert any(re.search(rf"^#  .*{file}", line) for line in header)
    # A folded YAML text, the arguments of an example, those of the launcher itself.
    commands = re.findall(
        rf"(?:-m experiments\.fliqs|{file})((?:\s+(?:--|#\s+--|\"\$@\"|[\w/]+)\S*)*)",
        text,
    )
    given = [name for c in commands for name in re.findall(r"--(\w+)", c)]
    assert "workdir" in given
    assert set(given) <= set(flags.FLAGS)


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_script_has_no_syntax_error(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


def run_with(tmp_path, replaced, script, *arguments, **environment):
    """Runs a script with some commands replaced; returns the calls of those."""
    log = tmp_path / "calls"
    for name in replaced:
        stand_in = tmp_path / name
        stand_in.write_text(f'#!/bin/sh\nprintf "%s\\0" {name} "$@" END >> {log}\n')
        stand_in.chmod(0o755)
    subprocess.run(
        ["bash", str(FOLDER / script), *arguments],
        check=True,
        env={**os.environ, **environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    calls = log.read_text().split("\0END\0")
    return [call.split("\0") for call in calls if call]


@pytest.mark.parametrize(
    ("script", "command", "distributed"),
    [("gpu_node.sh", "python", False), ("slurm.sh", "srun", True)],
)
def test_flags_are_handed_on(script, command, distributed, tmp_path):
    given = ["runs/a b", "--dataset=digits", "--pins=Block_0/.*=int8"]
    (call,) = run_with(tmp_path, [command], script, *given)
    start = call.index("experiments.fliqs")
    assert call[start - 1] == "-m"
    assert "--workdir=runs/a b" in call and call[-2:] == given[1:]
    assert ("--distributed" in call) == distributed


@pytest.mark.parametrize(("script", "hosts"), [("tpu_vm.sh", 1), ("tpu_pod.sh", 2)])
@pytest.mark.parametrize("extra", [[], ["--pins=Block_0/.*=int8", "--groups=a b"]])
def test_tpu_hosts_get_the_code_and_the_command(script, hosts, extra, tmp_path):
    environment = {"TPU": "one", "ZONE": "here", "SHARE": "10.0.0.2:/share"}
    calls = run_with(
        tmp_path, ["gcloud", "git"], script, "runs/x", *extra, **environment
    )
    assert [call[0] for call in calls] == ["git", "gcloud", "gcloud", "gcloud"]
    for call in calls[1:]:
        assert "--zone=here" in call and "one" in " ".join(call)
        assert ("--worker=all" in call) == (hosts > 1)
    (remote,) = [part for part in calls[-1] if part.startswith("--command=")]
    words = shlex.split(remote.removeprefix("--command="))
    assert words[-len(extra) :] == extra if extra else words[-1] == words[-1].strip()
    assert "" not in words
    assert ("--distributed" in words) == (hosts > 1)


def test_pods_of_the_kubernetes_job_find_each_other():
    text = (FOLDER / "kubernetes.yaml").read_text()
    service, job = yaml.safe_load_all(text)
    spec = job["spec"]
    pod = spec["template"]["spec"]
    name = job["metadata"]["name"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": name}
    (container,) = pod["containers"]
    command = container["command"][-1]
    assert f"--num_processes={spec['completions']} " in command
    assert f"--coordinator_address={name}-0.{pod['subdomain']}:" in command
    assert "\n" not in command.strip()
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
