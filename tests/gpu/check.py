"""`make gpu-check`: on a machine with GPUs, run the tests for them and the benchmarks, and write what to send.

    python -m tests.gpu.check --out FOLDER     # gpu-check.json and gpu-check.md in it, by default here

The status is 0 if every test passed and every benchmark ran; 1 if not, or if Paddle finds no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
Facts = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path.cwd())
    options = parser.parse_args(arguments)
    cards = count_cards()
    if not cards:
        print("gpu-check: Paddle finds no GPU here, so nothing was checked")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        report = {
            "machine": describe_machine(),
            "tests": run_tests(Path(folder) / "tests.xml"),
            "benchmarks": [run_benchmark(name, command, Path(folder)) for name, command in benchmarks(cards).items()],
        }
    options.out.mkdir(parents=True, exist_ok=True)
    written = options.out / "gpu-check.json", options.out / "gpu-check.md"
    written[0].write_text(json.dumps(report, indent=1) + "\n")
    written[1].write_text(as_table(report))
    print(f"gpu-check: written: {written[0]}, {written[1]}")
    return 0 if is_sound(report) else 1


def count_cards() -> int:
    """How many GPUs Paddle finds."""
    import paddle

    return int(paddle.device.cuda.device_count())


def describe_machine() -> Facts:
    """Cards, driver and versions. What cannot be found out is 'unknown'."""
    import paddle

    import plsc

    version = paddle.version
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
    return {
        "cards": output_of(query).splitlines(),
        "links": output_of(["nvidia-smi", "topo", "-m"]).splitlines(),
        "paddle": f"{paddle.__version__} ({version.commit})",
        "CUDA": str(version.cuda()),
        "cuDNN": str(version.cudnn()),
        "NCCL": str(version.nccl()),
        "numpy": __import__("numpy").__version__,
        "python": sys.version.split()[0],
        "plsc": f"{plsc.__version__} ({output_of(['git', '-C', str(ROOT), 'rev-parse', 'HEAD'])})",
    }


def output_of(command: list[str]) -> str:
    """What a command prints; 'unknown' where it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def run_tests(report: Path, *selection: str) -> list[Facts]:
    """The result and the seconds of each test marked `gpu`."""
    command = [sys.executable, "-m", "pytest", *(selection or ("-m", "gpu", "tests")), f"--junitxml={report}"]
    environment = {name: value for name, value in os.environ.items() if name != "PLSC_FAKE_GPU"}
    status = subprocess.run(command, cwd=ROOT, env=environment).returncode
    found = read_tests(report) if report.exists() else []
    if status and not {"failed", "error"} & {test["result"] for test in found}:
        # It was stopped, or could not begin: the report does not say which tests did not run.
        found.append({"name": "pytest", "result": "error", "seconds": 0.0, "message": [f"ended with status {status}"]})
    return found


def read_tests(report: Path) -> list[Facts]:
    """The tests of a report of pytest: passed, failed, error or skipped, with the message of those not passed."""
    found = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        outcome = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        facts: Facts = {
            "name": f"{case.get('classname', '')}::{case.get('name')}",
            "result": "passed" if outcome is None else {"failure": "failed"}.get(outcome.tag, outcome.tag),
            "seconds": float(case.get("time", 0.0)),
        }
        if outcome is not None:
            facts["message"] = (outcome.get("message") or "").splitlines()[:1]
            facts["text"] = (outcome.text or "")[-4000:]
        found.append(facts)
    return found


def benchmarks(cards: int) -> dict[str, list[str]]:
    """Name -> command line. `{folder}` becomes a folder that is read for figures afterwards."""
    ranks = max(count for count in (1, 2, 4, 8) if count <= cards)
    head = ["benchmarks/head.py", "--batch", "128", "--steps", "20", "--out", "{folder}"]
    head += ["--variants", "fused,recompute,sampled,unfused"]
    found = {
        f"head, {classes} classes, {count} ranks": [*head, "--classes", str(classes), "--ranks", str(count)]
        for count in sorted({1, ranks})
        for classes in (100_000, 1_000_000)
    }
    for model, side in (("ResNet50", 112), ("ResNetTiny", 32)):
        entry = ["benchmarks/entry.py", "--model", model, "--side", str(side), "--out", "{folder}"]
        found[f"entry, {model}"] = entry
    return found


def run_benchmark(name: str, command: list[str], folder: Path) -> Facts:
    """What a benchmark prints, and the JSON that it writes."""
    begin, files = time.perf_counter(), folder / name.replace(" ", "-").replace(",", "")
    line = [sys.executable, *(word.format(folder=files) for word in command)]
    done = subprocess.run(line, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(done.stdout, flush=True)
    return {
        "name": name,
        "command": " ".join(command),
        "status": done.returncode,
        "seconds": time.perf_counter() - begin,
        "output": done.stdout.splitlines()[-60:],
        "figures": [json.loads(path.read_text()) for path in sorted(files.glob("*.json"))],
    }


def is_sound(report: Facts) -> bool:
    """Whether a test ran and passed, none failed, and each benchmark ended well."""
    results = {test["result"] for test in report["tests"]}
    ended = all(not benchmark["status"] for benchmark in report["benchmarks"])
    return "passed" in results and results <= {"passed", "skipped"} and ended


def as_table(report: Facts) -> str:
    """The report as Markdown."""
    text = "# gpu-check\n\n| | |\n|---|---|\n"
    for name, value in report["machine"].items():
        if name != "links":
            text += f"| {name} | {'; '.join(value) if isinstance(value, list) else value} |\n"
    text += "\n| test | result | s |\n|---|---|---|\n"
    for test in report["tests"]:
        why = f": {' '.join(test['message'])}" if test.get("message") else ""
        text += f"| {test['name']} | {test['result']}{why.replace('|', '/')} | {test['seconds']:.1f} |\n"
    text += "\n| benchmark | status | s |\n|---|---|---|\n"
    for benchmark in report["benchmarks"]:
        text += f"| {benchmark['name']} | {benchmark['status']} | {benchmark['seconds']:.0f} |\n"
    for benchmark in report["benchmarks"]:
        text += f"\n## {benchmark['name']}\n\n```\n" + "\n".join(benchmark["output"]) + "\n```\n"
    return text


if __name__ == "__main__":
    sys.exit(main())
