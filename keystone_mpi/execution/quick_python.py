"""Starting another Python quickly: no site packages are searched, only named ones are found.

Rule: a helper process of ours imports a few known packages; looking through
site-packages and running its .pth files would cost it more than its work.

    quick_argv("from x import main; main()", ("keystone_mpi", "msgspec"), "argument")
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from keystone_mpi.core.errors import InternalError

_PREPARE = "import sys; sys.path[:0] = sys.argv.pop(1).split(chr(10)); "


def quick_argv(code: str, packages: tuple[str, ...], *arguments: str) -> list[str]:
    """Return the command of a Python that runs `code` and can import `packages`.

    Parameters
    ----------
    code : str
        Statements; `arguments` are in ``sys.argv[1:]``.
    packages : tuple of str
        Top-level packages, found as this process would find them.
    arguments : str
        Passed on.
    """
    folders = dict.fromkeys(_folder_of(package) for package in packages)
    return [sys.executable, "-I", "-S", "-X", "utf8", "-c", _PREPARE + code, "\n".join(folders), *arguments]


def _folder_of(package: str) -> str:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise InternalError(f"package {package} has no file; a helper process cannot import it")
    return str(Path(spec.origin).resolve().parent.parent)
