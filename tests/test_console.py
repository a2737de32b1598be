"""What programs have in common."""

import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_crash_in_compiled_code_names_its_python_line():
    program = """
import os, signal
from tinylm.console import run_as_script
def crash(arguments):
    os.kill(os.getpid(), signal.SIGSEGV)
run_as_script(crash)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == -11
    assert "Segmentation fault" in done.stderr and "line 5 in crash" in done.stderr
