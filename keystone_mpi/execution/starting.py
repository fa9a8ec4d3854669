"""Finding a program, and saying in one line why it did not start or how it ended.

Rule: the program is looked up on the solver's own PATH, once per name.

    argv[0] --(PATH)--> absolute path --> posix_spawn --> ENOENT, EACCES, ENOEXEC --> a line for people
"""

from __future__ import annotations

import errno
import os
import signal


class NotStartedError(OSError):
    """The program of an attempt did not start; `text` says why in one line."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Programs:
    """Where the programs are that were started before.

    Parameters
    ----------
    default_path : bytes
        PATH for environments that have none.
    """

    def __init__(self, default_path: bytes) -> None:
        self._default_path = default_path
        self._found: dict[tuple[str, bytes], str] = {}

    def find(self, name: str, path: bytes) -> str:
        """Return the file to run for `name`; names with a slash are left as they are.

        Raises
        ------
        NotStartedError
            There is no such program on the path.
        """
        if "/" in name:
            return name
        key = (name, path)
        found = self._found.get(key)
        if found is not None:
            return found
        blocked = ""
        for folder in os.fsdecode(path or self._default_path).split(":"):
            candidate = os.path.join(folder or ".", name)
            if os.path.isfile(candidate):
                if os.access(candidate, os.X_OK):
                    if os.path.isabs(candidate):
                        self._found[key] = candidate
                    return candidate
                blocked = blocked or candidate
        if blocked:
            raise NotStartedError(f"cannot start {name!r}: {blocked} is not executable (chmod +x {blocked})")
        raise NotStartedError(f"cannot start {name!r}: no such program on PATH")

    def explain(self, name: str, program: str, problem: Exception) -> str:
        """Say why a spawn failed."""
        self._found.clear()
        number = problem.errno if isinstance(problem, OSError) else None
        if number == errno.ENOENT and os.path.exists(program):
            return f"cannot start {name!r}: {_interpreter_text(program)}"
        if number == errno.ENOENT:
            return f"cannot start {name!r}: no such file"
        if number == errno.EACCES:
            if os.path.isdir(program):
                return f"cannot start {name!r}: it is a folder"
            return f"cannot start {name!r}: it is not executable (chmod +x {program})"
        if number == errno.ENOEXEC:
            return f"cannot start {name!r}: neither a program nor a script with a first line like #!/bin/sh"
        if number == errno.E2BIG:
            return f"cannot start {name!r}: its arguments and environment are too long"
        if number is not None:
            return f"cannot start {name!r}: {os.strerror(number)}"
        return f"cannot start {name!r}: {problem}"


def _interpreter_text(program: str) -> str:
    try:
        with open(program, "rb") as file:
            first = file.readline(256)
    except OSError:
        first = b""
    if first.startswith(b"#!"):
        interpreter = first[2:].decode("utf-8", "replace").split()
        return f"its interpreter {interpreter[0] if interpreter else ''!r} does not exist"
    return "its dynamic loader does not exist (built for another system?)"


def explain_exit(code: int, number: int, argv: tuple[str, ...], last_line: str) -> str:
    """Say in one line how a solver failed.

    Parameters
    ----------
    code : int
        Its exit code, -1 when a signal ended it.
    number : int
        That signal, 0 for none.
    argv : tuple of str
        Its command.
    last_line : str
        The last thing it printed.
    """
    if number:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = ""
        text = f"killed by signal {number}" + (f" ({name})" if name else "")
    else:
        text = f"exit code {code}"
        in_shell = os.path.basename(argv[0]) in ("sh", "bash", "dash", "ksh", "zsh", "env", "srun", "mpiexec")
        if code == 127 and in_shell:
            text += " (command not found)"
        elif code == 126 and in_shell:
            text += " (found, but not executable)"
        elif code > 128 and in_shell:
            try:
                text += f" (a process in it got {signal.Signals(code - 128).name})"
            except ValueError:
                pass
    return f"{text}: {last_line}" if last_line else text
