"""`plsc` in the process of the test."""

from __future__ import annotations

import sys

import pytest

from plsc.cli.main import main


def in_process(monkeypatch, capfd, *command):
    """A function that runs `plsc <command> <arguments>`, checks its exit status, and returns (output, errors)."""

    def call(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["plsc", *command, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        output, errors = capfd.readouterr()
        assert (end.value.code or 0) == status, output + errors
        return output, errors

    return call
