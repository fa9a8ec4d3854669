"""An attempt's work folder: made fresh, filled, and at the end what is worth keeping brought back.

Rule: only folders that `tools.render` made for this attempt are ever emptied.

    workdir  "none"   nothing is made or removed
    "task"   success: without `keep` the folder stays; with it only the matching files stay
             failure: the whole folder stays, within keep_failed
    "local"  success: the files matching `keep` are copied to OUT.work/<task_id>/attempt-<n>
             failure: the whole folder is copied there, within keep_failed; the local one is removed
    interrupted attempts leave nothing: they run again
"""

from __future__ import annotations

import os
import shutil

from keystone_mpi.execution.slot_messages import SlotOrder
from keystone_mpi.tools.recipe import Recipe

NO_CASE = ("processor[0-9]*", "processors[0-9]*", "postProcessing", "log.*", ".git")
"""What an earlier run left in a case folder; not copied."""


class Kept:
    """What is left of a work folder."""

    __slots__ = ("artifacts", "work_path")

    def __init__(self, work_path: str = "", artifacts: tuple[str, ...] = ()) -> None:
        self.work_path = work_path
        self.artifacts = artifacts


NOTHING_KEPT = Kept()


def prepare(order: SlotOrder, recipe: Recipe) -> None:
    """Make the work folder and its input files.

    Raises
    ------
    OSError
        A source is missing, a folder cannot be written.
    """
    launch = order.launch
    if recipe.workdir != "none":
        if os.path.lexists(launch.cwd):
            # Left by an attempt of this number that the records have forgotten.
            shutil.rmtree(launch.cwd)
        _make_folder(launch.cwd)
    if launch.case:
        shutil.copytree(
            launch.case,
            launch.cwd,
            symlinks=True,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns(*NO_CASE),
        )
    for target, source in launch.copies:
        _make_folder(os.path.dirname(target))
        if os.path.isdir(source):
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)
    # After the copies: a file made from a template takes the place of a copied one.
    for path, text in launch.writes:
        _make_folder(os.path.dirname(path))
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
    for target, source in launch.links:
        _make_folder(os.path.dirname(target))
        os.stat(source)
        os.symlink(source, target)


def _make_folder(path: str) -> None:
    # A neighbour may remove the empty parent between our making it and its child.
    for _ in range(10):
        try:
            os.makedirs(path, exist_ok=True)
        except FileNotFoundError:
            continue
        return
    os.makedirs(path, exist_ok=True)


def settle(order: SlotOrder, recipe: Recipe, output_path: str, *, succeeded: bool, discard: bool) -> Kept:
    """Keep what is to be kept of a work folder and remove the rest.

    Parameters
    ----------
    order : SlotOrder
        The attempt; nothing of it runs any more.
    recipe : Recipe
        Says what is kept.
    output_path : str
        Absolute path of the HDF5 file; ``<output>.work`` lies beside it.
    succeeded : bool
        Whether the attempt did.
    discard : bool
        Keep nothing: the attempt was interrupted.

    Raises
    ------
    OSError
        Something could not be copied or removed.
    """
    folder = order.launch.cwd
    if recipe.workdir == "none":
        return NOTHING_KEPT
    if discard or not (succeeded or order.keep_failed):
        remove_folder(folder)
        return NOTHING_KEPT
    wanted = _matching(folder, recipe.keep) if succeeded else ()
    if recipe.workdir == "task":
        if not succeeded or not recipe.keep:
            return Kept(folder)
        _remove_all_but(folder, set(wanted))
        if not wanted:
            remove_folder(folder)
            return NOTHING_KEPT
        return Kept(folder, wanted)
    task_id = order.launch.env.get("KEYSTONE_TASK_ID", str(order.index))
    target = os.path.join(f"{output_path}.work", task_id, f"attempt-{order.attempt}")
    kept = NOTHING_KEPT
    if not succeeded:
        _make_folder(os.path.dirname(target))
        shutil.copytree(folder, target, symlinks=True, dirs_exist_ok=True)
        kept = Kept(target)
    elif wanted:
        for name in wanted:
            path = os.path.join(target, name)
            _make_folder(os.path.dirname(path))
            shutil.copy2(os.path.join(folder, name), path, follow_symlinks=True)
        kept = Kept(target, wanted)
    remove_folder(folder)
    return kept


def _matching(folder: str, patterns: tuple[str, ...]) -> tuple[str, ...]:
    if not patterns:
        return ()
    import glob

    found: set[str] = set()
    for pattern in patterns:
        for name in glob.glob(pattern, root_dir=folder, recursive=True, include_hidden=True):
            name = os.path.normpath(name)
            if name.startswith("..") or os.path.isabs(name):
                continue
            path = os.path.join(folder, name)
            if os.path.isdir(path) and not os.path.islink(path):
                for parent, _, files in os.walk(path):
                    below = os.path.relpath(parent, folder)
                    found.update(os.path.normpath(os.path.join(below, file)) for file in files)
            else:
                found.add(name)
    return tuple(sorted(found))


def _remove_all_but(folder: str, wanted: set[str]) -> None:
    for parent, folders, files in os.walk(folder, topdown=False):
        below = os.path.relpath(parent, folder)
        for file in files:
            if os.path.normpath(os.path.join(below, file)) not in wanted:
                os.unlink(os.path.join(parent, file))
        for name in folders:
            path = os.path.join(parent, name)
            if os.path.islink(path):
                if os.path.normpath(os.path.join(below, name)) not in wanted:
                    os.unlink(path)
            elif not os.listdir(path):
                os.rmdir(path)


def remove_folder(folder: str) -> None:
    """Remove an attempt's folder, and its parent when that is empty now."""
    if os.getcwd().startswith(folder):
        os.chdir("/")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.rmdir(os.path.dirname(folder))
    except OSError:
        pass
