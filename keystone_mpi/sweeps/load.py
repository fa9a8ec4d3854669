"""Load: a sweep file, a task file or a stored spec becomes a `Sweep`.

Rule: everything that can be wrong with the file is found here, before any
task runs and before any file is touched, and is one `SweepFileError`.

    .toml | .json --(reading)--> tables --(points, command, options, outputs)--> SweepSpec --> Sweep
    anything else --(taskfile)-------------------------------------------------> SweepSpec --> Sweep
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import msgspec

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.deferred_numpy import np
from keystone_mpi.sweeps.blocks import Block
from keystone_mpi.sweeps.checking import TemplateChecker
from keystone_mpi.sweeps.command import (
    ToolChoice,
    choose_tool,
    read_command,
    read_launching,
    tool_environment,
)
from keystone_mpi.sweeps.fingerprint import make_fingerprint
from keystone_mpi.sweeps.options import PARSERS, check_column, check_values, parse_duration, read_task
from keystone_mpi.sweeps.outputs import read_collect, read_env, read_files, read_stdin, read_success
from keystone_mpi.sweeps.points import read_space
from keystone_mpi.sweeps.reading import TABLES, Section, read_document, read_text
from keystone_mpi.sweeps.space import Space
from keystone_mpi.sweeps.spec import SPEC_FORMAT, SweepSpec, TaskSpec
from keystone_mpi.sweeps.stored import stored_spec
from keystone_mpi.sweeps.sweep import Sweep, digest_of
from keystone_mpi.sweeps.values import REPLICATE
from keystone_mpi.tools.recipe import CollectRule, KeepOutput, Recipe, WorkdirMode
from keystone_mpi.tools.tool import Prepared

BLOCK_ROWS = 65536


def load_sweep(path: Path, *, start_dir: Path | None = None, check_programs: bool = True) -> Sweep:
    """Read and check a sweep file.

    Parameters
    ----------
    path : Path
        ``.toml`` or ``.json``; any other suffix is a task file.
    start_dir : Path, optional
        The folder where keystone-mpi was started: programs and scripts are
        looked up from there.  The current folder when not given.
    check_programs : bool
        Look up whether programs, scripts and standard input exist here.

    Raises
    ------
    SweepFileError
        One line: file, key, what was found, what is allowed.
    """
    path = Path(path)
    start = (start_dir or Path.cwd()).absolute()
    text = read_text(path)
    try:
        if path.suffix.lower() in (".toml", ".json"):
            spec, space = _read_sweep(path, text, start, check_programs)
        else:
            spec, space = _read_lines(path, text, start)
        return _make_sweep(spec, space, text, path)
    except SweepFileError as error:
        if error.path is not None:
            raise
        raise SweepFileError(path, error.where, error.problem, error.hint) from None


def sweep_from_spec(spec: bytes, text: str = "") -> Sweep:
    """Return the sweep of a results file; touches no other file.

    Parameters
    ----------
    spec : bytes
        What `Sweep.spec` gave.
    text : str
        The sweep file's text, when it is at hand.

    Raises
    ------
    SweepFileError
        When the spec is of a newer format or damaged.
    """
    decoded = stored_spec(spec)
    path = Path(decoded.source)
    return _make_sweep(decoded, Space(decoded.space, path), text, path, spec)


def _make_sweep(decoded: SweepSpec, space: Space, text: str, path: Path, spec: bytes | None = None) -> Sweep:
    return Sweep(
        name=decoded.name,
        source_path=path,
        text=text,
        recipe=decoded.recipe,
        space=space,
        options=decoded.task,
        seed_base=decoded.seed,
        warnings=list(decoded.warnings),
        spec=msgspec.json.encode(decoded) if spec is None else spec,
        fingerprint=decoded.fingerprint,
        space_digest=digest_of(decoded.space),
        _derived=frozenset(space.derived_names),
    )


def _read_lines(path: Path, text: str, start: Path) -> tuple[SweepSpec, Space]:
    from keystone_mpi.sweeps.taskfile import read_task_file

    recipe, space = read_task_file(text, str(start))
    fingerprint = {"command": "shell lines"}
    spec = SweepSpec(SPEC_FORMAT, path.stem, str(path.absolute()), recipe, space, fingerprint=fingerprint)
    return spec, Space(space, path)


def _read_sweep(path: Path, text: str, start: Path, check_programs: bool) -> tuple[SweepSpec, Space]:
    document = Section("", read_document(text, json_file=path.suffix.lower() == ".json"), tuple(TABLES))
    if not document.has("sweep"):
        raise SweepFileError(None, "sweep", "the table [sweep] is missing", "it holds the command")
    folder = path.absolute().parent
    warnings: list[str] = []
    sweep = document.section("sweep", TABLES["sweep"])
    name = sweep.text("name", path.stem)
    if not name or "/" in name or not name.isprintable():
        raise sweep.wrong("name", "a printable text without /")
    seed = sweep.whole("seed", 0, 0)
    space_spec = read_space(document, folder, warnings)
    space = Space(space_spec, path)
    if space.is_empty():
        raise sweep.error("where", f"it drops all {space.candidates:,} points of the sweep")
    task_section = document.section("task", TABLES["task"])
    document.section("slurm", TABLES["slurm"])  # read by `keystone-mpi submit`
    checker = TemplateChecker(space.names, space.params(0))
    choice = choose_tool(document, sweep)
    task_section = _with_tool_defaults(task_section, choice.section)
    recipe, command = _read_recipe(
        document, sweep, task_section, choice, checker, space, folder, start, check_programs
    )
    task = read_task(task_section, space.kinds())
    _check_points(task, space)
    warnings += _unused(checker, task, space)
    fingerprint = make_fingerprint(command, recipe, space_spec.derived, start)
    source = str(path.absolute())
    spec = SweepSpec(SPEC_FORMAT, name, source, recipe, space_spec, task, seed, fingerprint, warnings)
    return spec, space


def _read_recipe(
    document: Section,
    sweep: Section,
    task: Section,
    choice: ToolChoice,
    checker: TemplateChecker,
    space: Space,
    folder: Path,
    start: Path,
    check_programs: bool,
) -> tuple[Recipe, Prepared]:
    default = choice.tool.default_workdir(choice.keys)
    workdir = cast("WorkdirMode", task.choice("workdir", ("none", "task", "local"), default))
    own_folder = workdir != "none"
    keep = task.texts("keep")
    if keep and not own_folder:
        raise task.error("keep", "only used with a folder per task", 'workdir = "task" or "local"')
    files = read_files(document.section("files"), checker, folder, own_folder)
    env = read_env(task.section("env"), checker)
    launching = read_launching(task, choice, check_programs=check_programs)
    command = read_command(
        sweep,
        choice,
        checker,
        space.names,
        launching,
        start_dir=start,
        sweep_dir=folder,
        own_folder=own_folder,
        made_files=frozenset(files),
        path_is_set="PATH" in env,
        check_programs=check_programs,
    )
    recipe = Recipe(
        tool=choice.tool.name,
        argv=command.argv,
        shell=command.shell,
        script=command.script,
        env={**tool_environment(choice, command, checker), **env},
        stdin=read_stdin(task, checker, files, start, check_programs),
        files={**command.files, **files},
        collect=_merged(read_collect(document.section("collect"), checker, own_folder), command.collect),
        success=read_success(document.section("success", TABLES["success"])),
        workdir=workdir,
        keep=keep,
        keep_failed=task.whole("keep_failed", 20, 0),
        keep_output=cast("KeepOutput", task.choice("keep_output", ("tail", "failed", "all"), "tail")),
        grace_s=parse_duration(task.table.get("grace", 5.0), task.key("grace")),
        start_dir=str(start),
        setup=choice.keys.texts("setup"),
        check=command.check,
        check_hint=command.check_hint,
        prefix=choice.keys.texts("prefix"),
        launcher=launching.launcher,
        launcher_path=launching.path,
        launcher_flags=launching.flags,
        threads=launching.threads,
        starts_ranks=command.starts_ranks,
        mpi_program=command.mpi_program,
        case=command.case,
        collectors=command.collectors,
        jit_cache=command.jit_cache,
        unset=command.unset,
        solver_module=True,
    )
    return recipe, command


def _with_tool_defaults(task: Section, tool: Section) -> Section:
    """Take what ``[tools.NAME]`` says of ranks into ``[task]``, where options are read from."""
    defaults = {name: tool.table[name] for name in ("ranks", "threads") if tool.has(name)}
    return Section(task.where, {**defaults, **task.table}) if defaults else task


def _merged(own: tuple[CollectRule, ...], of_tool: tuple[CollectRule, ...]) -> tuple[CollectRule, ...]:
    names = {rule.name for rule in own}
    return (*(rule for rule in of_tool if rule.name not in names), *own)


def _check_points(task: TaskSpec, space: Space) -> None:
    """Find the points at which an expression has no result or an option does not fit."""
    derived = {name for name, expression in space.derived if expression.can_fail}
    options: list[tuple[str, str]] = []
    for name in PARSERS:
        param = getattr(task, name).param
        for block in space.blocks:
            if param in block.names:
                _check_block(name, param, block)
        if param in space.derived_names:
            options.append((name, param))
            derived.add(param)
    if derived:
        for columns in space.scan(frozenset(derived)):
            for name, param in options:
                if columns[param].dtype.kind == "O":
                    check_values(name, param, np.unique(columns[param]).tolist())
                else:
                    check_column(name, param, columns[param])
    len(space)


def _check_block(name: str, param: str, block: Block) -> None:
    wanted = frozenset((param,))
    for start in range(0, block.size, BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, block.size), dtype=np.int64)
        column = block.take(rows, wanted)[param]
        if column.dtype.kind == "O":
            check_values(name, param, np.unique(column).tolist())
        else:
            check_column(name, param, column)


def _unused(checker: TemplateChecker, task: TaskSpec, space: Space) -> list[str]:
    used = set(checker.used) | {getattr(task, name).param for name in PARSERS}
    for name, expression in reversed(space.derived):
        if name in used:
            used |= expression.names
    return [
        f"{'derived value' if name in space.derived_names else 'parameter'} {name} is used by no part"
        " of the command (the solver can still read it from $KEYSTONE_PARAMS)"
        for name in space.names
        if name not in used and name != REPLICATE
    ]
