"""examples/clusters/: checked as far as a machine without a cluster can."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import typer.main
import yaml

from plsc.cli.main import app
from tests._support.launching import BEGIN, ROOT
from tests._support.ranks import run

CLUSTERS = ROOT / "examples" / "clusters"
SCRIPTS = [CLUSTERS / "slurm.sbatch", CLUSTERS / "two_machines.sh"]
MANIFESTS = [CLUSTERS / "kubernetes_job.yaml", CLUSTERS / "kubernetes_paddlejob.yaml"]


def objects(path):
    return {made["kind"]: made for made in yaml.safe_load_all(path.read_text())}


def test_the_page_lists_every_file():
    named = set(re.findall(r"^\| \[(\S+)\]\(\1\)", (CLUSTERS / "README.md").read_text(), re.MULTILINE))
    assert named == {path.name for path in CLUSTERS.iterdir()} - {"README.md"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_shell_reads_the_scripts(path):
    subprocess.run(["bash", "-n", path], check=True)
    assert os.access(path, os.X_OK) or path.suffix == ".sbatch"


def plsc_calls(path):
    """The words of each `plsc COMMAND ...` in a file."""
    text = path.read_text()
    if path.suffix == ".yaml":
        container = pod(path)["containers"][0]
        text = " ".join([*container["command"], *container["args"]]).replace("bash -c ", "")
    text = "\n".join(line for line in text.replace("\\\n", " ").splitlines() if not line.startswith("#"))
    for call in re.findall(r"plsc (?:launch|train) .*?(?=plsc |\n|'|$)", text):
        yield [word.strip("\"'") for word in shlex.split(call)][1:]


@pytest.mark.parametrize("path", [*SCRIPTS, *MANIFESTS], ids=lambda path: path.name)
def test_the_flags_exist(path):
    calls = list(plsc_calls(path))
    assert sorted(words[0] for words in calls) == ["launch", "train"]
    for words in calls:
        command = typer.main.get_command(app).commands[words[0]]
        known = {flag for option in command.params for flag in [*option.opts, *option.secondary_opts]}
        assert {word for word in words if word.startswith("--")} <= known


def pod(path):
    made = objects(path)
    if "Job" in made:
        return made["Job"]["spec"]["template"]["spec"]
    return made["PaddleJob"]["spec"]["paddleReplicaSpecs"]["Worker"]["template"]["spec"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_the_pods_have_time_to_save_and_a_shared_folder(path):
    container = pod(path)["containers"][0]
    words = next(words for words in plsc_calls(path) if words[0] == "launch")
    assert float(words[words.index("--grace") + 1]) < pod(path)["terminationGracePeriodSeconds"]
    volumes = {volume["name"] for volume in pod(path)["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert volumes == set(mounts)
    assert mounts["work"] == container["workingDir"]


def test_the_job_replaces_pods_that_have_saved():
    spec = objects(MANIFESTS[0])["Job"]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == 2
    assert pod(MANIFESTS[0])["restartPolicy"] == "Never"  # podFailurePolicy demands it
    saved, evicted = spec["podFailurePolicy"]["rules"]
    names = [container["name"] for container in pod(MANIFESTS[0])["containers"]]
    assert saved == {
        "action": "Ignore",
        "onExitCodes": {"containerName": names[0], "operator": "In", "values": [75]},
    }
    assert evicted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}


def test_the_pods_of_the_job_meet_at_the_service():
    made = objects(MANIFESTS[0])
    script = pod(MANIFESTS[0])["containers"][0]["args"][0]
    name = made["Service"]["metadata"]["name"].upper().replace("-", "_")
    assert f"master=${name}_SERVICE_HOST" in script
    assert f"$master:{made['Service']['spec']['ports'][0]['port']}" in script
    assert made["Service"]["spec"]["selector"]["batch.kubernetes.io/job-name"] == made["Job"]["metadata"]["name"]
    assert f"--nnodes {made['Job']['spec']['completions']} " in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_paddle_job_is_started_again():
    worker = objects(MANIFESTS[1])["PaddleJob"]["spec"]["paddleReplicaSpecs"]["Worker"]
    assert worker["restartPolicy"] == "OnFailure"
    container = pod(MANIFESTS[1])["containers"][0]
    assert container["name"] == "paddle" and container["ports"] == [{"containerPort": 37777, "name": "master"}]


# --- Slurm, with stand-ins -------------------------------------------------------------------------------------------

STAND_INS = {
    # Runs the step on one node, and passes signals on as srun does.
    "srun": """
shift
SLURM_NODEID=0 "$@" &
step=$!
trap 'kill -USR1 $step' USR1
while :; do wait $step; status=$?; kill -0 $step 2>/dev/null || exit $status; done""",
    "scontrol": """
if [ "$1" = show ]; then echo localhost; echo other; else echo "$@" >>"$CALLS/scontrol"; fi""",
    "plsc": """
echo "$@" >"$CALLS/plsc"
trap 'exit 75' USR1
if [ -n "${STATUS:-}" ]; then exit "$STATUS"; fi
while :; do sleep 0.1; done""",
}


@pytest.fixture
def slurm(tmp_path):
    """Start slurm.sbatch as Slurm would; returns a function that returns the process."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in STAND_INS.items():
        path = programs / name
        path.write_text(f"#!/usr/bin/env bash{text}\n")
        path.chmod(0o755)
    started = []

    def start(**environment):
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        job = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "17", "SLURM_NNODES": "2", "CALLS": str(tmp_path)}
        job.update(environment, PATH=path)
        started.append(subprocess.Popen(["bash", CLUSTERS / "slurm.sbatch"], env={**os.environ, **job}, cwd=tmp_path))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def wait_for(path):
    for _ in range(200):
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} was not written")


def test_a_slurm_job_that_is_warned_saves_and_is_requeued(slurm, tmp_path):
    process = slurm()
    call = wait_for(tmp_path / "plsc").split()
    assert {"--master", "127.0.0.1:29500", "--nnodes", "2", "--rank", "0"} <= set(call)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 75
    assert (tmp_path / "scontrol").read_text() == "requeue 17\n"


@pytest.mark.parametrize("status", [0, 1])
def test_a_slurm_job_that_ends_is_not_requeued(slurm, tmp_path, status):
    assert slurm(STATUS=str(status)).wait(20) == status
    assert not (tmp_path / "scontrol").exists()


# --- two machines ----------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.ranks
@pytest.mark.slow
def test_two_launchers_start_again_together(tmp_path):
    """A failure of one machine's rank ends the ranks of both; each launcher starts its own again, and they meet."""
    (tmp_path / "train.py").write_text(
        BEGIN
        + """
import paddle
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import init_topology

start = int("PLSC_AUTO_RESUME" in os.environ)
collectives = Collectives(init_topology())
report_position(start)
collectives.gather_objects(rank)
if rank == 1 and not start:
    raise ValueError("the cause")
note("gathered", collectives.gather_objects(rank), start)
"""
    )
    port = free_port()

    def machine(number):
        nodes = ["--master", f"127.0.0.1:{port}", "--nnodes", 2, "--rank", number, "--nproc_per_node", 1]
        command = [sys.executable, "-m", "plsc", "launch", *nodes, "--backoff", 1, "--log_dir", f"log{number}"]
        return run([*command, "train.py"], cwd=tmp_path)

    with ThreadPoolExecutor(2) as pool:
        outputs = [output for _, output in pool.map(machine, range(2))]
    assert all("restart 1 of 3 from step 0 in 1 s" in output for output in outputs)
    assert sorted((tmp_path / "notes").read_text().splitlines()) == ["0 gathered [0, 1] 1", "1 gathered [0, 1] 1"]


@pytest.fixture
def two_machines(tmp_path):
    """Two network namespaces that see each other; returns the words that run a command in number 0 or 1."""
    if os.geteuid() or not shutil.which("ip") or subprocess.run(["unshare", "-n", "-m", "-u", "true"]).returncode:
        pytest.skip("network namespaces need root and iproute2")
    name = f"plsc{os.getpid()}"
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n10.211.0.1 machine-0\n10.211.0.2 machine-1\n")
    try:
        for number in (0, 1):
            subprocess.run(["ip", "netns", "add", f"{name}-{number}"], check=True)
        link = f"ip link add {name}0 netns {name}-0 type veth peer name {name}1 netns {name}-1"
        subprocess.run(link.split(), check=True)
        for number in (0, 1):
            inside = ["ip", "-n", f"{name}-{number}"]
            subprocess.run([*inside, "addr", "add", f"10.211.0.{number + 1}/24", "dev", f"{name}{number}"], check=True)
            for device in ("lo", f"{name}{number}"):
                subprocess.run([*inside, "link", "set", device, "up"], check=True)
        yield lambda number: [
            *("ip", "netns", "exec", f"{name}-{number}", "unshare", "-m", "-u", "bash", "-c"),
            f'hostname machine-{number}; mount --bind {tmp_path}/hosts /etc/hosts; exec "$@"',
            "bash",
        ]
    finally:
        for number in (0, 1):
            subprocess.run(["ip", "netns", "del", f"{name}-{number}"], check=False)


@pytest.mark.ranks
@pytest.mark.slow
def test_two_machines_train(two_machines, tmp_path, data_dir):
    settings = {
        **{"dataset_dir": str(data_dir), "image_shape": [3, 16, 16], "model_name": "ResNetTiny", "emb_dim": 16},
        **{"train_batch_size": 5, "train_epochs": 1, "num_workers": 0, "model_save_dir": str(tmp_path / "output")},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    plsc = tmp_path / "bin" / "plsc"
    plsc.parent.mkdir()
    plsc.write_text(f'#!/bin/sh\nexec {sys.executable} -m plsc "$@"\n')
    plsc.chmod(0o755)

    def machine(number):
        script = ["env", f"PATH={plsc.parent}:{os.environ['PATH']}", CLUSTERS / "two_machines.sh", number, "10.211.0.1"]
        return run([*two_machines(number), *script, "plsc", "train", "--config", "run.yaml"], cwd=tmp_path)

    with ThreadPoolExecutor(2) as pool:
        outputs = [output for _, output in pool.map(machine, range(2))]
    assert sum("lfw: accuracy" in output for output in outputs) == 1
    folders = [path.name for path in (tmp_path / "log").iterdir()]
    assert sorted(name.split("-", 2)[2] for name in folders) == ["machine-0", "machine-1"]
    assert (tmp_path / "output" / "0").is_dir()
