"""The kit of `make gpu-check`, without a GPU: what it says, and what it writes of played tests and benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.gpu import check

TESTS = """
import pytest
def test_good(): pass
def test_bad(): assert 1 == 2, "a | b"
@pytest.mark.skip(reason="needs 8 GPUs")
def test_left_out(): pass
"""


def test_without_a_gpu_one_line_says_so_and_the_status_is_not_0(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "count_cards", lambda: 0)
    assert check.main(["--out", str(tmp_path)]) == 1
    assert capsys.readouterr().out == "gpu-check: Paddle finds no GPU here, so nothing was checked\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad, status", [(False, 0), (True, 1)])
def test_results_and_figures_are_written_to_one_file_and_one_table(tmp_path, monkeypatch, bad, status):
    (tmp_path / "test_it.py").write_text(TESTS if bad else TESTS.replace("1 == 2", "True"))
    benchmark = tmp_path / "bench.py"
    benchmark.write_text("import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir()\n")
    with benchmark.open("a") as file:
        file.write("(p / 'a.json').write_text('{\"seconds\": 2}'); print('2 seconds')\n")
    monkeypatch.setattr(check, "count_cards", lambda: 2)
    monkeypatch.setattr(check, "benchmarks", lambda cards: {"one, two": [str(benchmark), "{folder}"]})
    real = check.run_tests
    options = ("-p", "no:cacheprovider", "-c", "/dev/null", str(tmp_path / "test_it.py"))
    monkeypatch.setattr(check, "run_tests", lambda report: real(report, *options))
    assert check.main(["--out", str(tmp_path / "sent")]) == status
    found = json.loads((tmp_path / "sent" / "gpu-check.json").read_text())
    results = {test["name"].split("::")[1]: test["result"] for test in found["tests"]}
    assert results == {"test_good": "passed", "test_bad": "failed" if bad else "passed", "test_left_out": "skipped"}
    assert found["machine"]["paddle"] and found["machine"]["CUDA"] and found["machine"]["NCCL"]
    assert found["benchmarks"][0]["figures"] == [{"seconds": 2}]
    table = (tmp_path / "sent" / "gpu-check.md").read_text()
    assert "2 seconds" in table and "test_good | passed" in table and "needs 8 GPUs" in table


@pytest.mark.parametrize("interrupted", ["raise KeyboardInterrupt", "import os; os._exit(3)"])
def test_tests_that_were_stopped_are_not_sound(tmp_path, interrupted):
    (tmp_path / "test_it.py").write_text(f"def test_good(): pass\ndef test_stops(): {interrupted}\n")
    options = ("-p", "no:cacheprovider", "-c", "/dev/null", str(tmp_path / "test_it.py"))
    report = {"machine": {}, "tests": check.run_tests(tmp_path / "tests.xml", *options), "benchmarks": []}
    assert not check.is_sound(report)
    assert "| pytest | error: ended with status" in check.as_table(report)


def test_a_benchmark_that_fails_and_tests_that_are_all_left_out_are_not_sound():
    passed, skipped = {"result": "passed"}, {"result": "skipped"}
    assert check.is_sound({"tests": [passed, skipped], "benchmarks": [{"status": 0}]})
    assert not check.is_sound({"tests": [passed], "benchmarks": [{"status": 1}]})
    assert not check.is_sound({"tests": [skipped], "benchmarks": []})


def test_the_commands_of_the_benchmarks_name_options_that_they_have():
    for words in check.benchmarks(2).values():
        asked = subprocess.run([sys.executable, words[0], "--help"], cwd=check.ROOT, capture_output=True, text=True)
        for word in words[1:]:
            assert not word.startswith("--") or word in asked.stdout, word
