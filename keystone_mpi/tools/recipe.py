"""A recipe: how every task of a sweep is run and how its results come out.

Rule: plain data, complete in itself. A worker that holds a recipe and one
task's parameters needs nothing else; it never sees the sweep file.

    sweep file --(sweeps)--> Recipe --(welcome message)--> worker
    Recipe + params --(tools.render)--> Launch --(execution)--> solver process
    solver output + Recipe.collect --(tools.collect)--> result values
"""

from typing import Literal

import msgspec

WorkdirMode = Literal["none", "task", "local"]
LauncherKind = Literal["", "mpiexec", "srun"]
KeepOutput = Literal["tail", "failed", "all"]


class FileRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of ``[files]``: exactly one of the three sources is set."""

    template: str = ""
    """Absolute path of a text file with ``{name}`` placeholders."""
    copy: str = ""
    link: str = ""
    text: str = ""
    """Content of the template, read once by the master so that workers need not."""


class CollectRule(msgspec.Struct, frozen=True):
    """One entry of ``[collect]``: where a result value comes from."""

    name: str
    regex: str = ""
    """Last match in the output; its first group is the value."""
    source: Literal["stdout", "stderr"] = "stdout"
    type: Literal["float", "int", "str", "bool", ""] = ""
    file: str = ""
    """Path template of a ``.npy``, ``.npz``, ``.csv``, ``.json`` or text file."""
    column: str = ""
    """Column of a CSV file; member of an ``.npz`` or key of a ``.json`` file."""
    required: bool = False


class CollectorRule(msgspec.Struct, frozen=True):
    """A reader of one solver's own output files and logs; see `tools.collectors`."""

    kind: str
    options: dict[str, str] = {}


class SuccessRule(msgspec.Struct, frozen=True):
    """``[success]``: what must hold beside exit code 0."""

    finite: tuple[str, ...] = ()
    """Results that must exist and be finite."""
    required: tuple[str, ...] = ()
    """Results that must exist."""
    regex: str = ""
    """Must be found in stdout."""


class Recipe(msgspec.Struct, frozen=True):
    """How a task is run, in the words of the sweep file."""

    tool: str = "command"
    argv: tuple[str, ...] = ()
    """Argument templates. For a shell command: one template."""
    shell: bool = False
    """Run ``argv[0]`` by ``/bin/sh -c``; parameter values are quoted into it."""
    script: str = ""
    """Absolute path of the script of a tool; empty for a plain command."""
    env: dict[str, str] = {}
    """Name -> template."""
    stdin: str = ""
    """Path template of a file given on standard input; empty: /dev/null."""
    files: dict[str, FileRule] = {}
    """Path template below the work folder -> rule."""
    collect: tuple[CollectRule, ...] = ()
    success: SuccessRule = SuccessRule()
    workdir: WorkdirMode = "none"
    keep: tuple[str, ...] = ()
    keep_failed: int = 20
    keep_output: KeepOutput = "tail"
    grace_s: float = 5.0
    """Between SIGTERM and SIGKILL."""
    start_dir: str = ""
    """Absolute path of the folder in which keystone-mpi was started."""
    setup: tuple[str, ...] = ()
    """Shell lines run once per worker; the environment that they leave is every solver's."""
    check: tuple[str, ...] = ()
    """Command that must succeed after `setup`: is the solver there? Empty: the program is looked up."""
    check_hint: str = ""
    """How to install what `check` misses."""
    prefix: tuple[str, ...] = ()
    """Argument templates before the command, such as ``apptainer exec image.sif``."""
    launcher: LauncherKind = ""
    """Starts the ranks of a parallel solver; empty: the solver is one process."""
    launcher_path: str = ""
    """The mpiexec or srun to use; empty: the one that belongs to the solver's MPI."""
    launcher_flags: tuple[str, ...] = ()
    threads: int = 1
    """Cores of each rank."""
    starts_ranks: bool = False
    """The command starts the ranks itself, by ``$KEYSTONE_MPIEXEC``."""
    mpi_program: str = ""
    """Program whose MPI library decides the mpiexec; empty: the command's own."""
    case: str = ""
    """Absolute path of a folder that is copied into each work folder."""
    collectors: tuple[CollectorRule, ...] = ()
    jit_cache: bool = False
    """XDG_CACHE_HOME is a folder of the worker's own (compiled forms)."""
    unset: tuple[str, ...] = ()
    """Variables that the solver must not inherit."""
    solver_module: bool = False
    """Make ``import keystone_solver`` work."""


class Launch(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attempt, fully spelled out: what `tools.render` makes and a slot process runs."""

    argv: tuple[str, ...]
    env: dict[str, str]
    """Added to the worker's scrubbed environment."""
    cwd: str
    """Absolute. The slot process makes it when it is a work folder."""
    stdin: str = ""
    """Absolute path; empty: /dev/null."""
    writes: tuple[tuple[str, str], ...] = ()
    """(absolute path, text) written before the start."""
    copies: tuple[tuple[str, str], ...] = ()
    """(absolute target, absolute source)."""
    links: tuple[tuple[str, str], ...] = ()
    collect_files: dict[str, str] = {}
    """Collect rule name -> absolute path, after templating."""
    ranks: int = 0
    """Processes that the recipe's launcher starts; 0: it is not used."""
    unset: tuple[str, ...] = ()
    """Variables removed before `env` is added."""
    python_path: str = ""
    """Folder put last on PYTHONPATH."""
    case: str = ""
    """Folder whose content is copied into `cwd` before everything else."""
