"""FEniCSx's cache of compiled forms: shared by a worker's tasks, never poisoned by a killed one.

Rule: a compiler that is killed leaves an entry without its ``.c.cached`` mark,
for which every later task would wait ten seconds and then fail. So tasks
compile in a folder of their slot's own; only entries that are complete, of
tasks that succeeded, are passed on to the worker's other slots.

    worker's entries --(hard links)--> slot's folder = $XDG_CACHE_HOME --(success)--> worker's entries
    an attempt that did not succeed --> the slot's folder is thrown away
    second and later attempts       --> a fresh folder, with nothing in it

What else the user has in the usual cache (fonts, ...) is linked into the folder.
"""

from __future__ import annotations

import os
import shutil

FORMS = "fenics"
_MARK = ".c.cached"


class JitCache:
    """The cache of one slot process.

    Parameters
    ----------
    shared_path : str
        The worker's complete entries; made when there is something to put in.
    own_path : str
        Below it this slot's folders are made.
    """

    def __init__(self, shared_path: str, own_path: str) -> None:
        self._shared = os.path.join(shared_path, FORMS)
        self._own = own_path
        self._current = ""

    def begin(self, attempt: int, user_cache: str) -> str:
        """Return the folder that an attempt gets as XDG_CACHE_HOME.

        Parameters
        ----------
        attempt : int
            1 for the first; later ones get an empty cache.
        user_cache : str
            What it would be otherwise.
        """
        folder = os.path.join(self._own, "cache" if attempt == 1 else "fresh-cache")
        self._current = folder
        if attempt > 1:
            shutil.rmtree(folder, ignore_errors=True)
        forms = os.path.join(folder, FORMS)
        if not os.path.isdir(forms):
            os.makedirs(forms)
            _link_others(user_cache, folder)
        if attempt == 1:
            _pass_on(self._shared, forms)
        return folder

    def end(self, succeeded: bool) -> None:
        """Keep what the attempt compiled, or throw it away."""
        if succeeded:
            _pass_on(os.path.join(self._current, FORMS), self._shared)
        else:
            shutil.rmtree(self._current, ignore_errors=True)


def _pass_on(source: str, target: str) -> None:
    """Link the complete entries of one folder into another, each one's mark last."""
    try:
        names = os.listdir(source)
    except FileNotFoundError:
        return
    marks = [name for name in names if name.endswith(_MARK)]
    if marks:
        os.makedirs(target, exist_ok=True)
    for mark in marks:
        if os.path.lexists(os.path.join(target, mark)):
            continue
        stem = mark.removesuffix(_MARK)
        for name in (*(n for n in names if n.startswith(f"{stem}.") and n != mark), mark):
            try:
                os.link(os.path.join(source, name), os.path.join(target, name))
            except FileExistsError:
                continue  # another slot compiled the same form meanwhile


def _link_others(user_cache: str, folder: str) -> None:
    try:
        names = os.listdir(user_cache)
    except OSError:
        return
    for name in names:
        if name != FORMS:
            os.symlink(os.path.join(user_cache, name), os.path.join(folder, name))
