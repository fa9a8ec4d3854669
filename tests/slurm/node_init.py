"""Process 1 of a virtual node: starts its slurmd, reaps whatever is orphaned, never ends by itself.

    python node_init.py HOSTNAME HOSTS_FILE BOOT_ID_FILE COMMAND...

Killing this process ends every process of the node at once, as a power failure would.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time


def main() -> None:
    """Be the node."""
    name, hosts, boot_id, *command = sys.argv[1:]
    socket.sethostname(name)
    for source, target in ((hosts, "/etc/hosts"), (boot_id, "/proc/sys/kernel/random/boot_id")):
        subprocess.run(["mount", "--bind", source, target], check=True)
    # Shared memory of ranks is the node's own, and gone with it.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)
    # A node that is switched off by signal is switched off by SIGKILL to this process.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(0.5)


main()
