"""What C libraries print to standard error: libjpeg's and libpng's lines are kept from it, all others are passed on."""

from __future__ import annotations

import ctypes
import os
import threading
import time

import pytest

from plsc.utils.c_stderr import captured_c_stderr, quiet_c_stderr

LIBC = ctypes.CDLL(None)
pytestmark = pytest.mark.skipif(not hasattr(LIBC, "gnu_get_libc_version"), reason="stderr of this C library is fixed")


def say(text: str) -> None:
    """What `fprintf(stderr, ...)` does."""
    LIBC.fputs(f"{text}\n".encode(), ctypes.c_void_p.in_dll(LIBC, "stderr"))


def test_lines_of_image_libraries_are_kept_and_others_passed_on(capfd):
    with quiet_c_stderr():
        say("libpng warning: iCCP: known incorrect sRGB profile")
        say("a word of another library")
        os.write(2, b"Python writes to the descriptor\n")
    assert capfd.readouterr().err == "Python writes to the descriptor\na word of another library\n"
    say("later")
    assert capfd.readouterr().err == "later\n"


def test_captured_lines_are_those_of_the_block(capfd):
    with quiet_c_stderr():
        say("libpng warning: before")
        with captured_c_stderr() as lines:
            say("Corrupt JPEG data: premature end of data segment")
            assert lines == []
    assert lines == ["Corrupt JPEG data: premature end of data segment"]
    with captured_c_stderr() as lines:
        pass
    assert lines == [] and capfd.readouterr().err == ""


def test_an_exception_leaves_standard_error_as_it_was(capfd):
    with pytest.raises(ValueError, match="inside"), captured_c_stderr():
        raise ValueError("inside")
    say("after it")
    assert capfd.readouterr().err == "after it\n"


def test_threads_and_forked_processes_do_not_disturb_each_other(capfd):
    wrong: list[str] = []
    is_over = threading.Event()

    def work(number: int) -> None:
        count = 0
        while not is_over.is_set() and not (number < 0 and count == 200):
            count += 1
            line = f"Corrupt JPEG data: {number} {count}"
            if number % 2:
                with quiet_c_stderr():
                    say("libpng error: another thread's")
            else:
                with captured_c_stderr() as lines:
                    say(line)
                if line not in lines or any(found.startswith("Corrupt") and found != line for found in lines):
                    wrong.append(f"{line}: {lines}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    children = []
    for _ in range(20):
        child = os.fork()
        if child == 0:
            work(-2)  # hangs where a lock was taken over from a thread that is not in this process
            os._exit(len(wrong) > 0)
        children.append(child)
        time.sleep(0.001)
    is_over.set()
    for thread in threads:
        thread.join()
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    assert not wrong and capfd.readouterr().err == ""
