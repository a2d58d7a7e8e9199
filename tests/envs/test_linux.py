"""A child asks the kernel to kill it when its parent ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

CODE = """
import os, sys, time
from hindsight.envs.runtime.linux import die_with_parent
read, write = os.pipe()
parent = os.getpid()
if os.fork() == 0:
    die_with_parent({parent})
    os.write(write, b"x")
    print("ready", flush=True)
    time.sleep(60)
    os._exit(0)
os.close(write)
os.read(read, 1)  # ends at once if the child exits instead
{then}
"""


def run(parent: str, then: str) -> subprocess.Popen[str]:
    code = CODE.format(parent=parent, then=then)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)


def test_the_child_ends_with_its_parent():
    process = run("parent", "time.sleep(60)")
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    assert process.communicate(timeout=20)[0] == ""  # the child holds stdout open as long as it lives


def test_a_child_whose_parent_has_already_ended_exits_at_once():
    process = run("parent - 1", "print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)")
    assert process.communicate(timeout=20)[0] == "1\n"
