"""Render: a recipe and one task's parameters become one spelled-out launch.

Rule: pure text work. Nothing is created, looked up or started here, and every
path that an attempt may write holds its task and its attempt number, so a
late, forgotten attempt never writes into its successor's place.

    Recipe --(Renderer, once)--> templates --(render(params, context))--> Launch

    workdir "none"   cwd = the folder where keystone-mpi was started
    workdir "task"   cwd = <output>.work/<task_id>/attempt-<n>
    workdir "local"  cwd = <scratch_dir>/<run_id>/<task_id>-<n>
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from typing import Any

import msgspec

from keystone_mpi.core.errors import UserError
from keystone_mpi.tools.recipe import Launch, Recipe
from keystone_mpi.tools.templates import Template, compile_template

RESERVED_NAMES = ("task_id", "index", "seed", "cores", "workdir")
"""Names that every template may use beside the parameters; no parameter may be called so."""

RANKS_NAME = "_ranks"
"""Number of ranks, for templates that tools write; a user's file says {cores}."""

LINE_TOOL = "line"
"""`Recipe.tool` of a task file: the parameter `command` is the shell line itself, braces and all."""


_encode = msgspec.json.Encoder().encode


class RenderError(UserError):
    """A template that does not fit one task's values."""


class RenderContext(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a template may know of an attempt beside its parameters."""

    index: int
    """Row of the task in the file of the whole sweep."""
    attempt: int
    """1 for the first."""
    task_id: str
    seed: int = 0
    cores: int = 1


class Renderer:
    """Turns parameters into launches for one recipe; make it once per worker.

    Parameters
    ----------
    recipe : Recipe
        How the tasks are run.
    output_path : str
        Absolute path of the HDF5 file; work folders lie beside it (``poisson.h5`` -> ``poisson.h5.work``).
    scratch_dir : str
        Absolute path of the node's own disk, used by ``workdir = "local"``.
    run_id : str
        Tag by which leftover processes of the run are found.
    epoch : int
        Which start of the run this is.
    """

    def __init__(
        self, recipe: Recipe, *, output_path: str, scratch_dir: str, run_id: str, epoch: int = 1
    ) -> None:
        self.recipe = recipe
        self._work_root = f"{output_path}.work"
        self._scratch_root = os.path.join(scratch_dir, run_id)
        self._run_id = run_id
        self._epoch = str(epoch)
        self._argv = tuple(compile_template(text) for text in recipe.argv)
        self._prefix = tuple(compile_template(text) for text in recipe.prefix)
        self._python_path = _folder_of_solver_module() if recipe.solver_module else ""
        self._env = tuple((name, compile_template(text)) for name, text in recipe.env.items())
        self._sets_threads = "OMP_NUM_THREADS" in recipe.env
        self._stdin = compile_template(recipe.stdin) if recipe.stdin else None
        # A file that [files] makes is read from the task's folder, any other from the start folder.
        self._stdin_is_made = recipe.stdin in recipe.files
        self._texts: list[tuple[Template, Template]] = []
        self._copies: list[tuple[Template, Template]] = []
        self._links: list[tuple[Template, Template]] = []
        for target, rule in recipe.files.items():
            pair = compile_template(target)
            if rule.template:
                self._texts.append((pair, compile_template(rule.text)))
            elif rule.copy:
                self._copies.append((pair, compile_template(rule.copy)))
            else:
                self._links.append((pair, compile_template(rule.link)))
        self._collect = tuple(
            (rule.name, compile_template(rule.file)) for rule in recipe.collect if rule.file
        )

    def work_path(self, task_id: str, attempt: int) -> str:
        """Return the folder in which an attempt runs (the start folder under ``workdir = "none"``)."""
        match self.recipe.workdir:
            case "none":
                return self.recipe.start_dir
            case "task":
                return os.path.join(self._work_root, task_id, f"attempt-{attempt}")
            case "local":
                return os.path.join(self._scratch_root, f"{task_id}-{attempt}")

    def render(self, params: Mapping[str, Any], context: RenderContext) -> Launch:
        """Spell out one attempt.

        Raises
        ------
        RenderError
            When a format spec does not fit a value of this task, or a file's
            target leaves the task's folder.
        """
        task_id = context.task_id
        cwd = self.work_path(task_id, context.attempt)
        values: dict[str, Any] = {
            **params,
            "task_id": task_id,
            "index": context.index,
            "seed": context.seed,
            "cores": context.cores,
            "workdir": cwd,
            RANKS_NAME: ranks_of(self.recipe, context.cores),
        }
        try:
            return self._render(params, values, context, cwd)
        except KeyError as error:
            raise RenderError(f"task {task_id}: {error} is none of its parameters") from None
        except (ValueError, TypeError, OverflowError):
            raise RenderError(f"task {task_id}: {self._unfit(values)}") from None

    def _render(
        self, params: Mapping[str, Any], values: dict[str, Any], context: RenderContext, cwd: str
    ) -> Launch:
        recipe = self.recipe
        if recipe.tool == LINE_TOOL:
            argv: tuple[str, ...] = ("/bin/sh", "-c", str(params["command"]))
        elif recipe.shell:
            argv = ("/bin/sh", "-c", " ".join([t.render_quoted(values) for t in self._argv]))
        else:
            argv = tuple([t.render(values) for t in self._argv])
        if self._prefix:
            argv = (*[t.render(values) for t in self._prefix], *argv)
        env = {
            "KEYSTONE_PARAMS": _encode(params).decode(),
            "KEYSTONE_TASK_ID": context.task_id,
            "KEYSTONE_INDEX": str(context.index),
            "KEYSTONE_ATTEMPT": str(context.attempt),
            "KEYSTONE_SEED": str(context.seed),
            "KEYSTONE_RUN": self._run_id,
            "KEYSTONE_EPOCH": self._epoch,
        }
        if not self._sets_threads:
            env["OMP_NUM_THREADS"] = str(recipe.threads if recipe.launcher else context.cores)
        for name, template in self._env:
            env[name] = template.render(values)
        stdin = ""
        if self._stdin is not None:
            folder = cwd if self._stdin_is_made else recipe.start_dir
            stdin = os.path.normpath(os.path.join(folder, self._stdin.render(values)))
        return Launch(
            argv=argv,
            env=env,
            cwd=cwd,
            stdin=stdin,
            writes=_pairs(self._texts, cwd, values),
            copies=_pairs(self._copies, cwd, values),
            links=_pairs(self._links, cwd, values),
            collect_files={
                name: os.path.normpath(os.path.join(cwd, t.render(values))) for name, t in self._collect
            },
            ranks=values[RANKS_NAME] if recipe.launcher else 0,
            unset=() if recipe.setup else recipe.unset,
            python_path=self._python_path,
            case=recipe.case,
        )

    def _unfit(self, values: Mapping[str, Any]) -> str:
        """Find the template that failed; only called after a failure."""
        pairs = [part for pair in (*self._texts, *self._copies, *self._links) for part in pair]
        stdin = [self._stdin] if self._stdin is not None else []
        for template in (
            *self._prefix,
            *self._argv,
            *(t for _, t in self._env),
            *pairs,
            *(t for _, t in self._collect),
            *stdin,
        ):
            try:
                template.check_values(values)
            except UserError as error:
                return str(error)
        return next(
            (
                f"[files] target {text!r} leaves the task's folder"
                for text in (t.render(values) for t, _ in (*self._texts, *self._copies, *self._links))
                if not _is_inside(text)
            ),
            "its parameters cannot be written as JSON",
        )


def _pairs(
    templates: list[tuple[Template, Template]], cwd: str, values: Mapping[str, Any]
) -> tuple[tuple[str, str], ...]:
    if not templates:
        return ()
    return tuple([(_inside(cwd, target.render(values)), text.render(values)) for target, text in templates])


def ranks_of(recipe: Recipe, cores: int) -> int:
    """Return how many ranks an attempt on `cores` cores has."""
    return max(1, cores // recipe.threads)


def _folder_of_solver_module() -> str:
    return os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "for_solvers")


def _is_inside(target: str) -> bool:
    plain = os.path.normpath(target)
    return not (os.path.isabs(plain) or plain == ".." or plain.startswith("../") or plain == ".")


def _inside(cwd: str, target: str) -> str:
    if not _is_inside(target):
        raise ValueError(target)
    return os.path.normpath(os.path.join(cwd, target))
