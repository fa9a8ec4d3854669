"""Small private folders on the node's own disk, and those that a killed process could not remove.

Rule: a folder's name says whose it is. It is removed by its owner, by the
owner's launcher, or, when both were killed at once, by the next start on the
node.

    <scratch>/keystone-<uid>-<pid namespace>-<pid of the rank>-<random>/
"""

from __future__ import annotations

import os
import shutil


def local_scratch_path() -> str:
    """Return the node's own disk: ``$SLURM_TMPDIR``, ``$TMPDIR`` or ``/tmp``, whichever can be written."""
    for name in (os.environ.get("SLURM_TMPDIR"), os.environ.get("TMPDIR"), "/tmp"):
        if name and os.path.isdir(name) and os.access(name, os.W_OK | os.X_OK):
            return os.path.abspath(name)
    return os.getcwd()


def new_scratch_root() -> str:
    """Return a path for this process's folder; the launcher makes it when it is needed."""
    return os.path.join(local_scratch_path(), f"{_prefix()}{os.getpid()}-{os.urandom(8).hex()}")


def remove_stale_roots() -> None:
    """Remove the folders of this user's processes of this machine that are no more."""
    folder, prefix = local_scratch_path(), _prefix()
    for name in os.listdir(folder):
        owner = name.removeprefix(prefix).partition("-")[0]
        if name.startswith(prefix) and owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


def _prefix() -> str:
    # A pid means something only within its namespace: containers may share /tmp.
    namespace = os.stat("/proc/self/ns/pid").st_ino
    return f"keystone-{os.getuid()}-{namespace}-"
