"""Which kernels MKL is told to take."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from plsc.utils.processor import mkl_kernels

ALL = "sse2 avx avx2 fma avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    "vendor, flags, expected",
    [
        ("AuthenticAMD", ALL, "7"),
        ("AuthenticAMD", "sse2 avx avx2 fma avx512f", "5"),
        ("HygonGenuine", "sse2 avx avx2 fma", "5"),
        ("AuthenticAMD", "sse2 avx", None),
        ("GenuineIntel", ALL, None),
    ],
)
def test_the_best_kernels_that_the_processor_has_where_mkl_does_not_look(vendor, flags, expected):
    one = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n"
    assert mkl_kernels(f"{one}\n{one}") == expected


def test_a_processor_of_another_kind_is_left_alone():
    assert mkl_kernels("processor\t: 0\nFeatures\t: fp asimd\n") is None


def test_the_users_own_choice_stays():
    code = "import os, plsc.utils.lazy as lazy; lazy.require_paddle(); print(os.environ['MKL_DEBUG_CPU_TYPE'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MKL_DEBUG_CPU_TYPE": "4"},
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.split()[-1] == "4"
