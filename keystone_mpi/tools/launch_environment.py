"""A launch's environment: the worker's, without what must not be inherited, with what the task sets.

Rule: the slot process and `rerun` make it the same way.

    base - unset, PYTHONPATH + the solver module's folder, + launch.env
"""

from __future__ import annotations

from collections.abc import Mapping

from keystone_mpi.tools.recipe import Launch


def add_python_path(env: dict[bytes, bytes], folder: str) -> None:
    """Put a folder last on PYTHONPATH."""
    given = env.get(b"PYTHONPATH", b"")
    env[b"PYTHONPATH"] = given + b":" + folder.encode() if given else folder.encode()


def solver_environment(base: Mapping[bytes, bytes], launch: Launch) -> dict[bytes, bytes]:
    """Return what a solver sees, its KEYSTONE_RESULT apart."""
    env = {name: value for name, value in base.items() if name.decode("utf-8", "replace") not in launch.unset}
    if launch.python_path:
        add_python_path(env, launch.python_path)
    for name, text in launch.env.items():
        env[name.encode("utf-8", "surrogateescape")] = text.encode("utf-8", "surrogateescape")
    return env
