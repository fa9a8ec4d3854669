"""The libraries of the extra ``[analysis]``: loaded late, missed politely.

Rule: nothing here is imported before it is needed, and what is missing is told
with the command that installs it.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from keystone_mpi.core.errors import UserError


def load(name: str, purpose: str) -> Any:
    """Import a library of the extra ``[analysis]``.

    Parameters
    ----------
    name : str
        Module, such as ``"pandas"`` or ``"matplotlib.figure"``.
    purpose : str
        What it is needed for, for the message.

    Raises
    ------
    UserError
        It is not installed; the message has the pip command.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        library = name.partition(".")[0]
        missing = error.name.partition(".")[0] if error.name else library
        raise UserError(
            f"{purpose} needs {library}, and {missing} is not installed for {sys.executable}: "
            f"`{sys.executable} -m pip install 'keystone_mpi[analysis]'`"
        ) from error
