"""What Paddle prints of itself is kept from the terminal; what a user needs is not."""

from __future__ import annotations

import sys

from plsc.utils.paddle_noise import quiet_environment, without_flags
from tests._support.ranks import run


def test_what_the_user_has_set_stays():
    environment = {"GLOG_minloglevel": "0", "PYTHONWARNINGS": "error"}
    quiet_environment(environment, of_launcher=True)
    assert environment == {"GLOG_minloglevel": "0", "PYTHONWARNINGS": "ignore:No ccache found,error"}
    quiet_environment(environment, of_launcher=True)
    assert environment["PYTHONWARNINGS"].count("ccache") == 1
    environment = {}
    quiet_environment(environment)
    assert environment == {"GLOG_minloglevel": "1"}


def test_the_list_of_flags_is_left_out_and_nothing_else(capsys):
    with without_flags():
        print("before", file=sys.stderr)
        sys.stderr.write("======================= Modified FLAGS detected =======================\n")
        sys.stderr.write("FLAGS(name='FLAGS_x', current_value=True, default_value=False)")
        sys.stderr.write("\n")
        sys.stderr.write("=======================================================================\n")
        sys.stderr.write("an error\n")
        sys.stderr.write("\n")
    print("after", file=sys.stderr)
    assert capsys.readouterr().err == "before\nan error\n\nafter\n"


def test_without_standard_error_there_is_nothing_to_leave_out(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with without_flags():
        assert sys.stderr is None


def test_the_import_of_paddle_prints_nothing():
    assert run([sys.executable, "-c", "from plsc.utils.lazy import require_paddle; require_paddle()"])[1] == ""
