"""Guarantee 6: every mistake in a sweep file gets one clear line, before any task runs."""

# ruff: noqa: E501  (a table of messages, each on its line)

from __future__ import annotations

from pathlib import Path

import pytest

from keystone_mpi.core.errors import SweepFileError, UserError
from keystone_mpi.sweeps import points
from keystone_mpi.sweeps.load import load_sweep, sweep_from_spec

COMMAND = 'command = ["python", "heat.py", "{a}"]\n'
SWEEP = "[sweep]\n" + COMMAND
ONE = SWEEP + "[params]\na = [1]\n"
ALWAYS = "always there: task_id, index, seed, cores, workdir"
FUNCTIONS = "abs, min, max, sqrt, exp, log, log10, sin, cos, tan, floor, ceil, round"
TASK_KEYS = (
    "timeout, retries, retries_timeout, retries_memory, retries_lost, cores, launcher, ranks, threads, "
    "launcher_flags, launcher_path, memory, gpus, priority, workdir, keep, "
    "keep_failed, keep_output, stdin, env, grace"
)
SWEEP_KEYS = "name, command, tool, script, python, case, applications, shell, setup, prefix, where, derived, repeat, seed"
TABLES = "sweep, params, zip, table, sample, task, tools, files, collect, success, slurm"
BRACES = "write {{ and }} for braces that are text"
DURATION = 'allowed are seconds, or a text such as "90s", "10min", "1h30m", "2d"'
OWN = 'put {task_id} into its name, or [task] workdir = "task"'

CASES = {
    # the file itself
    "[sweep\n": "line 1, column 7: TOML syntax: expected ']' at the end of a table declaration (the line is: [sweep)",
    "[sweep]\na = = 1\n": "line 2, column 5: TOML syntax: invalid value (the line is: a = = 1)",
    "[sweep]\nname = 'x'\nname = 'y'\n": "line 3, column 11: TOML syntax: cannot overwrite a value "
    "(the line is: name = 'y')",
    "": "sweep: the table [sweep] is missing (it holds the command)",
    "sweep = 1\n": "sweep: found 1; this is a table of keys: [sweep]",
    SWEEP
    + "[parms]\na = [1]\n": f'parms: unknown table or key; allowed are {TABLES} (did you mean "params"?)',
    "timeout = 3\n" + SWEEP: f"timeout: unknown table or key; allowed are {TABLES} (write it inside [task])",
    "[derived]\nh = '1'\n"
    + SWEEP: f"derived: unknown table or key; allowed are {TABLES} (write it inside [sweep])",
    "kappa = [1]\n"
    + SWEEP: f"kappa: unknown table or key; allowed are {TABLES} (parameters belong in [params])",
    # [sweep]
    "[sweep]\n": 'sweep.command: missing; what is to be run (command = ["./solver", "--size", "{size}"])',
    SWEEP + "wher = 'a < 1'\n": f'sweep.wher: unknown key; allowed are {SWEEP_KEYS} (did you mean "where"?)',
    SWEEP
    + "timeout = 1\n": f"sweep.timeout: unknown key; allowed are {SWEEP_KEYS} (timeout belongs in [task])",
    SWEEP + "name = 'a/b'\n": 'sweep.name: found "a/b"; allowed is a printable text without /',
    SWEEP + "name = 3\n": 'sweep.name: found 3; allowed is a text (name = "3")',
    SWEEP + "repeat = 0\n": "sweep.repeat: found 0; allowed is a whole number, at least 1",
    SWEEP + "repeat = '5'\n": 'sweep.repeat: found "5"; allowed is a whole number, at least 1',
    SWEEP + "seed = 1.5\n": "sweep.seed: found 1.5; allowed is a whole number, at least 0",
    SWEEP + "shell = 1\n": "sweep.shell: found 1; allowed is true or false",
    "[sweep]\ncommand = []\n": "sweep.command: the list is empty; it needs a program",
    "[sweep]\ncommand = 3\n": "sweep.command: found 3; allowed is a list of texts: program, argument, ...",
    "[sweep]\ncommand = ['']\n": "sweep.command[0]: the program's name is empty",
    "[sweep]\ncommand = ['python', 5]\n": 'sweep.command[1]: found 5; every argument is a text ("5")',
    "[sweep]\ncommand = ['python', true]\n": 'sweep.command[1]: found true; every argument is a text ("true")',
    "[sweep]\ncommand = 'python heat.py --x \"{a} b\"'\n[params]\na = [1]\n": "sweep.command: found the text "
    '"python heat.py --x "{a} b""; allowed is a list, or a text with shell = true '
    '(command = ["python", "heat.py", "--x", "{a} b"])',
    "[sweep]\nshell = true\ncommand = ['ls']\n": 'sweep.command: found ["ls"]; allowed is with shell = true one text, '
    "the shell line (or leave shell = true out)",
    "[sweep]\nshell = true\ncommand = ' '\n": "sweep.command: the shell line is empty",
    "[sweep]\nshell = true\ncommand = 'x() { ls; }'\n": "sweep.command: { ls; } is not a parameter's name "
    f"(in a shell line too: {BRACES})",
    "[sweep]\ncommand = ['pyhton', 'heat.py']\n": 'sweep.command[0]: the program "pyhton" is not on PATH '
    '(did you mean "python"?)',
    "[sweep]\ncommand = ['heat.py']\n": 'sweep.command[0]: the program "heat.py" is not on PATH '
    '(to run the one in DIR write "./heat.py")',
    "[sweep]\ncommand = ['./heat.py']\n": 'sweep.command[0]: the program "./heat.py" is not executable: DIR/heat.py '
    "(chmod +x DIR/heat.py)",
    "[sweep]\ncommand = ['./haet.py']\n": 'sweep.command[0]: the program "./haet.py" does not exist: DIR/haet.py '
    '(did you mean "heat.py"?)',
    "[sweep]\ncommand = ['./sub']\n": 'sweep.command[0]: the program "./sub" is a folder: DIR/sub',
    "[sweep]\ncommand = ['python', 'haet.py']\n": 'sweep.command[1]: the script "haet.py" does not exist: DIR/haet.py '
    '(did you mean "heat.py"?)',
    "[sweep]\ncommand = ['python3', '-u', '-X', 'dev', 'no/x.py']\n": 'sweep.command[4]: the script "no/x.py" does '
    "not exist: DIR/no/x.py (its folder does not exist)",
    "[sweep]\ncommand = ['bash', 'zzzzz.sh']\n": 'sweep.command[1]: the script "zzzzz.sh" does not exist: DIR/zzzzz.sh '
    "(looked up from the folder where keystone-mpi was started: DIR)",
    "[sweep]\ntool = 'abaqus'\nscript = 'heat.py'\n": 'sweep.tool: found "abaqus"; the tools are command, python, fenicsx, lammps, openfoam',
    "[sweep]\ntool = 'pyhton'\nscript = 'heat.py'\n": 'sweep.tool: found "pyhton"; the tools are command, python, fenicsx, lammps, openfoam '
    '(did you mean "python"?)',
    "[sweep]\ntool = 'python'\n": 'sweep.script: missing; tool = "python" runs a script (script = "solve.py")',
    "[sweep]\ntool = 'python'\nscript = 'het.py'\n": 'sweep.script: the script "het.py" does not exist: DIR/het.py '
    '(did you mean "heat.py"?)',
    "[sweep]\ntool = 'python'\npython = 'python9'\nscript = 'heat.py'\n": 'sweep.python: the program "python9" is not '
    "on PATH (did you mean",
    "[sweep]\ntool = 'python'\nscript = 'heat.py'\ncommand = ['ls']\n": 'sweep.command: not used with tool = "python" '
    "(give command, or tool and script)",
    "[sweep]\nscript = 'heat.py'\ncommand = ['ls']\n": 'sweep.script: only used with tool = "python" '
    '(tool = "python" and script, or command)',
    # names in templates
    SWEEP
    + "[params]\nab = [1]\n": f"sweep.command[2]: {{a}} is no parameter; the parameters are: ab; {ALWAYS} "
    '(did you mean "ab"?)',
    SWEEP: f"sweep.command[2]: {{a}} is no parameter; the parameters are: none; {ALWAYS}",
    "[sweep]\ncommand = ['ls', '{replicate}']\n": "sweep.command[1]: {replicate} is no parameter; the parameters are: "
    f"none; {ALWAYS} (it exists with sweep.repeat > 1)",
    "[sweep]\ncommand = ['ls', '{a:d}']\n[params]\na = [1.5]\n": "sweep.command[1]: {a:d} does not fit the value 1.5: "
    "Unknown format code 'd' for object of type 'float'",
    "[sweep]\ncommand = ['ls', '{a']\n": f"sweep.command[1]: a {{ without its }} ({BRACES})",
    "[sweep]\ncommand = ['ls', '{a.b}']\n": f"sweep.command[1]: {{a.b}} is not a parameter's name ({BRACES})",
    # [params]
    SWEEP + "[params]\na = []\n": "params.a: the list is empty; a sweep needs at least one value",
    SWEEP + "[params]\na = 3\n": "params.a: found 3; allowed is a list of values or a range (a = [3])",
    SWEEP + "[params]\na = 'x'\n": 'params.a: found "x"; allowed is a list of values or a range (a = ["x"])',
    SWEEP
    + "[params]\na = [1, 'x']\n": 'params.a: numbers and text are mixed in [1, "x"]; one kind per parameter',
    SWEEP
    + "[params]\na = [1, true]\n": "params.a: booleans and numbers are mixed in [1, true]; one kind per parameter",
    SWEEP + "[params]\na = [1, nan]\n": "params.a: nan is not a parameter value; only finite numbers are",
    SWEEP + "[params]\na = [-inf]\n": "params.a: -inf is not a parameter value; only finite numbers are",
    SWEEP + "[params]\na = [[1]]\n": "params.a: found [1]; allowed values are numbers, text, true and false",
    SWEEP
    + "[params]\na = [2026-01-01]\n": "params.a: found 2026-01-01 (a date); allowed values are numbers, text, "
    "true and false",
    SWEEP
    + "[params]\na = [9223372036854775808]\n": "params.a: 9223372036854775808 does not fit 64 bits; write it as "
    "text or as a float",
    SWEEP
    + '[params]\na = ["x\\u0000"]\n': "params.a: a text holds a NUL byte, which no command line can carry",
    SWEEP
    + "[params]\na = [1, 2, 1.0]\n": "params.a: the value 1.0 is there twice (to run a task several times use "
    "sweep.repeat)",
    SWEEP + "[params]\na = {}\n": "params.a: found {  }; allowed is exactly one of linspace, range, logspace",
    SWEEP
    + "[params]\na = { linspce = [0, 1, 3] }\n": "params.a.linspce: unknown key; allowed are linspace, range, "
    'logspace (did you mean "linspace"?)',
    SWEEP
    + "[params]\na = { linspace = [0, 1] }\n": "params.a.linspace: found [0, 1]; allowed is [first, last, count]",
    SWEEP
    + "[params]\na = { linspace = [0, 1, 2.5] }\n": "params.a.linspace: the count 2.5 is not a whole number "
    "([first, last, count])",
    SWEEP + "[params]\na = { linspace = [0, 1, 0] }\n": "params.a: 0 values asked for; at least 1 is needed",
    SWEEP + "[params]\na = { linspace = [1, 1, 3] }\n": "params.a: linspace from 1 to 1 is one value 3 times",
    SWEEP + "[params]\na = { range = [0, 1, 0] }\n": "params.a: the step of a range is 0",
    SWEEP + "[params]\na = { range = [1, 0, 0.1] }\n": "params.a: range = [1, 0, 0.1] has no value "
    "(range is [start, stop (exclusive), step])",
    SWEEP + "[params]\na = { range = [0, inf, 1] }\n": "params.a.range: found [0, inf, 1]; allowed is "
    "[start, stop (exclusive), step]",
    SWEEP
    + "[params]\na = { logspace = [-3, 0, 4] }\n": "params.a: logspace = [-3.0, 0.0, 4] needs positive ends "
    "(logspace takes the values themselves, not exponents: [1e-3, 1, 4])",
    SWEEP
    + "[params]\na = { range = [0, 99999999999999, 1] }\n": "params.a: 99,999,999,999,999 values; at most "
    "1,099,511,627,776 are allowed",
    SWEEP
    + '[params]\n"mesh-size" = [1]\n': 'params.mesh-size: "mesh-size" is not a parameter name; allowed are '
    'letters, digits and _, not a digit first (for example "mesh_size")',
    SWEEP
    + "[params]\nseed = [1]\n": "params.seed: the name seed is reserved; every template has task_id, index, "
    "seed, cores, workdir already",
    SWEEP
    + "repeat = 5\n[params]\nreplicate = [1]\n": "params.replicate: the parameter replicate is already given by "
    "sweep.repeat (with repeat the replicate's number is called replicate)",
    # [zip]
    ONE + "[zip]\na = [1]\n": "zip.a: the parameter a is already given by params.a",
    SWEEP + "[zip]\n": "zip: the table is empty; it needs columns of one length",
    SWEEP + "[zip]\na = 1\n": "zip.a: found 1; allowed is a list of values",
    SWEEP + "[zip]\na = [1, 2]\nb = [1]\n": "zip: the columns differ in length: a has 2, b has 1 "
    "([params] crosses its lists)",
    SWEEP
    + "[zip]\na = [1, 2, 1]\nb = [1, 1, 1]\n": "zip: entry 3 repeats entry 1 (a task is its parameters; to run "
    "one several times use sweep.repeat)",
    # where and derived
    ONE + "[sweep.derived]\na = '1'\n": "sweep.derived.a: the parameter a is already given by params.a",
    ONE
    + "[sweep.derived]\nh = 1\n": 'sweep.derived.h: found 1; allowed is an expression as text (h = "1 / mesh_size")',
    ONE + "[sweep.derived]\nh = '1 / kappa'\n": "sweep.derived.h: unknown name kappa; the parameters are: a",
    SWEEP + "where = ''\n[params]\na = [1]\n": "sweep.where: the expression is empty",
    SWEEP
    + "where = 'a'\n[params]\na = [1]\n": 'sweep.where: "a" is no condition (compare something: kappa < 2)',
    SWEEP + "where = 'a <'\n[params]\na = [1]\n": 'sweep.where: "a <" cannot be read: invalid syntax',
    SWEEP + "where = 'a = 1'\n[params]\na = [1]\n": 'sweep.where: "a = 1" cannot be read: invalid syntax '
    "(write == to compare)",
    SWEEP
    + "where = 'a < 1 && a > 0'\n[params]\na = [1]\n": 'sweep.where: "a < 1 && a > 0" cannot be read: invalid '
    "syntax (write and, or, not)",
    SWEEP
    + "where = 'mesh < 1'\n[params]\na = [1]\nmesch = [1]\n": "sweep.where: unknown name mesh; the parameters "
    'are: a, mesch (did you mean "mesch"?)',
    SWEEP
    + "where = 'sqr(a) < 1'\n[params]\na = [1]\n": f"sweep.where: unknown function sqr; the functions are: "
    f'{FUNCTIONS} (did you mean "sqrt"?)',
    SWEEP
    + "where = 'a.real < 1'\n[params]\na = [1]\n": "sweep.where: attribute access (a.b) is not part of the "
    "arithmetic that is allowed here",
    SWEEP
    + "where = 'a ^ 2 < 1'\n[params]\na = [1]\n": "sweep.where: ^ is not part of the arithmetic that is allowed "
    "here (write ** for a power)",
    SWEEP + "where = 'a > 5'\n[params]\na = [1, 2]\n": "sweep.where: it drops all 2 points of the sweep",
    SWEEP
    + "where = '1 / a < 1'\n[params]\na = { range = [100000, -1, -1] }\n": 'sweep.where: "1 / a < 1": division '
    "by zero, at a = 0 (a condition guards it: x != 0 and 1 / x < 5)",
    SWEEP
    + "where = '9 ** a ** 9 > 5'\n[params]\na = [10]\n": 'sweep.where: "9 ** a ** 9 > 5": a result too large for '
    "a number (in power), at a = 10",
    SWEEP
    + "derived = { h = '1 / a' }\n[params]\na = { range = [100000, -1, -1] }\n": 'sweep.derived.h: "1 / a": '
    "division by zero, at a = 0 (a condition guards it: x != 0 and 1 / x < 5)",
    # [table]
    SWEEP + "[table]\n": 'table.file: missing; which CSV file holds the points (file = "points.csv")',
    SWEEP
    + "[table]\nfile = 'point.csv'\n": 'table.file: DIR/point.csv does not exist (did you mean "points.csv"?)',
    SWEEP + "[table]\nfile = 'points.csv'\nsep = ';'\n": "table.sep: unknown key; allowed are file",
    ONE + "[table]\nfile = 'points.csv'\n": "table.a: the parameter a is already given by params.a",
    # [sample]
    ONE + "[sample]\n": "sample.n: missing; how many points are to be drawn",
    ONE + "[sample]\nn = 3\n": "sample.ranges: missing or empty (ranges = { x = [0, 1] })",
    ONE
    + "[sample]\nn = 0\nranges = { x = [0, 1] }\n": "sample.n: found 0; allowed is a whole number, at least 1 and "
    "at most 1,099,511,627,776",
    ONE
    + "[sample]\nn = 3\nmethod = 'lsh'\nranges = { x = [0, 1] }\n": 'sample.method: found "lsh"; allowed is one of '
    '"random", "lhs", "sobol" (did you mean "lhs"?)',
    ONE + "[sample]\nn = 3\nranges = { x = [1, 0] }\n": "sample.ranges.x: low = 1 is not below high = 0",
    ONE
    + "[sample]\nn = 3\nranges = { x = { low = 0 } }\n": "sample.ranges.x.high: missing; a range needs low and high",
    ONE
    + "[sample]\nn = 3\nranges = { x = { low = 0, high = 1, scale = 'log' } }\n": "sample.ranges.x: low = 0 with "
    'scale = "log"; allowed are numbers above 0',
    ONE
    + "[sample]\nn = 3\nranges = { x = { low = 0.5, high = 1, type = 'int' } }\n": "sample.ranges.x: low = 0.5, "
    'high = 1 with type = "int"; allowed are whole numbers',
    ONE
    + "[sample]\nn = 3\nranges = { x = { low = 0, high = 1, type = 'int' } }\n": "sample.n: 3 points asked for, but "
    "the whole-number ranges hold 2",
    ONE
    + "[sample]\nn = 3\nranges = { a = [0, 1] }\n": "sample.ranges.a: the parameter a is already given by params.a",
    # [task]
    ONE
    + "[task]\ntimout = 3\n": f'task.timout: unknown key; allowed are {TASK_KEYS} (did you mean "timeout"?)',
    ONE
    + "[task]\ncommand = ['ls']\n": f"task.command: unknown key; allowed are {TASK_KEYS} (command belongs in "
    "[sweep])",
    ONE
    + "[task]\ntimeout = '10mins'\n": 'task.timeout: found "10mins"; the unit "mins" is none of ms, s, min, h, d '
    '(did you mean "min"?)',
    ONE + "[task]\ntimeout = 'soon'\n": f'task.timeout: found "soon"; {DURATION}',
    ONE + "[task]\ntimeout = -1\n": f"task.timeout: found -1; {DURATION}",
    ONE + "[task]\ntimeout = true\n": f"task.timeout: found true; {DURATION}",
    ONE + "[task]\ngrace = 'x'\n": f'task.grace: found "x"; {DURATION}',
    ONE
    + "[task]\nmemory = '2Gx'\n": 'task.memory: found "2Gx"; allowed are bytes, or a text such as "500MB", "2GiB"',
    ONE + "[task]\nmemory = 2\n": 'task.memory: 2 is 2 bytes, too little for any program ("2GiB"?)',
    ONE + "[task]\ncores = 0\n": "task.cores: found 0; allowed is a whole number, at least 1",
    ONE + "[task]\ncores = '{ranks}'\n": "task.cores: {ranks} is no parameter; the parameters are: a",
    ONE
    + "[task]\ncores = 'a{a}'\n": 'task.cores: found "a{a}"; allowed is a value or one parameter alone, such as '
    '"{ranks}"',
    ONE
    + "[task]\nretries = -1\n": "task.retries: found -1; allowed is a whole number, at least 0 and at most 1,000",
    ONE
    + "[task]\nretries = { faild = 1 }\n": "task.retries.faild: unknown key; allowed are failed, timeout, memory, "
    'lost (did you mean "failed"?)',
    ONE
    + "[task]\nretries = {}\nretries_lost = 1\n": "task.retries_lost: given twice; retries is a table already",
    ONE
    + "[task]\npriority = 'high'\n": 'task.priority: found "high"; allowed is a number; larger goes first',
    ONE + "[task]\nworkdir = 'tmp'\n": 'task.workdir: found "tmp"; allowed is one of "none", "task", "local"',
    ONE
    + "[task]\nkeep = ['*.vtu']\n": 'task.keep: only used with a folder per task (workdir = "task" or "local")',
    ONE
    + "[task]\nkeep = '*.vtu'\n": 'task.keep: found "*.vtu"; allowed is a list of texts (keep = ["*.vtu"])',
    ONE
    + "[task]\nkeep_output = 'al'\n": 'task.keep_output: found "al"; allowed is one of "tail", "failed", "all" '
    '(did you mean "all"?)',
    ONE + "[task]\nstdin = 'x.in'\n": "task.stdin: DIR/x.in does not exist",
    ONE + "[task]\nenv = { KEYSTONE_X = '1' }\n": "task.env.KEYSTONE_X: names that begin with KEYSTONE_ are "
    "keystone_mpi's own",
    ONE + "[task]\nenv = { X = true }\n": "task.env.X: found true; allowed is a text or a number",
    ONE
    + "[task]\nenv = { X = '{b}' }\n": f"task.env.X: {{b}} is no parameter; the parameters are: a; {ALWAYS}",
    SWEEP
    + "[params]\na = ['1GiB', 'x']\n[task]\nmemory = '{a}'\n": 'task.memory: from the parameter a: found "x"; '
    'allowed are bytes, or a text such as "500MB", "2GiB"',
    SWEEP + "[params]\na = ['x']\n[task]\ncores = '{a}'\n": "task.cores: the parameter a is text",
    SWEEP
    + "[params]\na = { range = [100000, -1, -1] }\n[task]\ncores = '{a}'\n": "task.cores: from the parameter a: "
    "found 0; allowed is a whole number, at least 1",
    SWEEP
    + "derived = { c = 'a - 5' }\n[params]\na = [6, 5]\n[task]\ncores = '{c}'\n": "task.cores: from the "
    "parameter c: found 0; allowed is a whole number, at least 1",
    ONE
    + "[sample]\nn = 9\nranges = { x = [-1, 1] }\n[task]\ntimeout = '{x}'\n": "task.timeout: from the parameter x: "
    "found -0.",
    # [files]
    ONE
    + "[files]\nx = { copy = 'heat.py' }\n": f"files.x: tasks would write the same file: they share one folder ({OWN})",
    ONE
    + "[task]\nworkdir = 'task'\n[files]\nx = { template = 'deck.in' }\n": "DIR/deck.in: line 2: { tol 1; } is not "
    f'a parameter\'s name ({BRACES}, or add delimiters = ["<<", ">>"] to its entry)',
    ONE
    + "[task]\nworkdir = 'task'\n[files]\nx = { template = 'plain.in' }\n": "DIR/plain.in: line 2: {kapa} is no "
    f'parameter; the parameters are: a; {ALWAYS} ({BRACES}, or add delimiters = ["<<", ">>"] to its entry)',
    ONE
    + "[task]\nworkdir = 'task'\n[files]\nx = { template = 'zzzz' }\n": "files.x.template: DIR/zzzz does not exist",
    ONE
    + "[task]\nworkdir = 'task'\n[files]\nx = { link = 'no.in' }\n": "files.x.link: DIR/no.in does not exist",
    ONE
    + "[task]\nworkdir = 'task'\n[files]\nx = {}\n": "files.x: found none of them; allowed is exactly one of "
    "template, copy, link",
    ONE
    + "[task]\nworkdir = 'task'\n[files]\nx = 'heat.py'\n": 'files.x: found "heat.py"; this is a table of keys: '
    "[files.x]",
    ONE
    + "[task]\nworkdir = 'task'\n[files]\n'../x' = { copy = 'heat.py' }\n": 'files."../x": the target is not a path '
    "inside the task's folder",
    ONE
    + "[task]\nworkdir = 'task'\n[files]\nx = { tmplate = 'a' }\n": "files.x.tmplate: unknown key; allowed are "
    'template, copy, link, delimiters (did you mean "template"?)',
    ONE
    + "[task]\nworkdir = 'task'\n[files]\nx = { template = 'deck.in', delimiters = ['{', '>'] }\n": "files.x."
    'delimiters: found ["{", ">"]; allowed is two texts, such as ["<<", ">>"]',
    # [collect] and [success]
    ONE + "[collect]\nu = {}\n": "collect.u: found neither regex nor file; one is needed",
    ONE
    + "[collect]\nu = { file = 'u.npy' }\n": f"collect.u.file: tasks would read each other's: they share one folder "
    f"({OWN})",
    ONE
    + "[collect]\nu = { file = '{b}.npy' }\n": f"collect.u.file: {{b}} is no parameter; the parameters are: a; "
    f"{ALWAYS}",
    ONE
    + "[collect]\nu = { regex = '(' }\n": 'collect.u.regex: "(" is no regular expression: missing ), unterminated '
    "subpattern at position 0",
    ONE
    + "[collect]\nu = { regex = 'abc' }\n": "collect.u.regex: it has no group (put the value into parentheses: "
    r"'residual = (\S+)')",
    ONE
    + "[collect]\nu = { regex = '(a)', type = 'flot' }\n": 'collect.u.type: found "flot"; allowed is one of '
    '"float", "int", "str", "bool" (did you mean "float"?)',
    ONE
    + "[collect]\nu = { regex = '(a)', form = 'stderr' }\n": "collect.u.form: unknown key; allowed are regex, from, "
    'type, file, column, required (did you mean "from"?)',
    ONE
    + "[collect]\n'a b' = { regex = '(a)' }\n": 'collect."a b": "a b" is not a result name; allowed are letters, '
    "digits, _, . and -",
    ONE
    + "[success]\nfinite = 'x'\n": 'success.finite: found "x"; allowed is a list of texts (finite = ["x"])',
    ONE + "[success]\nregexp = 'x'\n": "success.regexp: unknown key; allowed are finite, required, regex "
    '(did you mean "regex"?)',
    ONE
    + "[success]\nregex = '['\n": 'success.regex: "[" is no regular expression: unterminated character set at '
    "position 0",
}
OPEN_ENDED = ("(did you mean", "found -0.")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "heat.py").write_text("print('{}')\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "points.csv").write_text("a,b\n1,2\n")
    (tmp_path / "deck.in").write_text("mesh {a}\n{\n  tol 1;\n}\n")
    (tmp_path / "plain.in").write_text("mesh {a}\nkappa {kapa}\n")
    return tmp_path


def complaint(folder: Path, name: str = "s.toml") -> str:
    with pytest.raises(UserError) as caught:
        load_sweep(folder / name, start_dir=folder)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(folder), "DIR")


@pytest.mark.parametrize("text", CASES)
def test_a_mistake_gets_one_line(folder: Path, text: str) -> None:
    (folder / "s.toml").write_text(text)
    before = sorted(folder.iterdir())
    expected = CASES[text] if CASES[text].startswith("DIR/") else f"DIR/s.toml: {CASES[text]}"
    message = complaint(folder)
    assert message.startswith(expected) if expected.endswith(OPEN_ENDED) else message == expected
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the table is empty; it needs a header and rows"),
        ("a,b\n", "the table has a header but no rows"),
        ("a,b\n1,2\n\n3\n", "line 4: 1 cell found, 2 expected (a, b)"),
        ("a,b\n1,2,3\n", "line 2: 3 cells found, 2 expected (a, b)"),
        ("a,b\n1,\n", "line 2: the cell of column b is empty"),
        ("a,a\n1,2\n", "line 1: the column a is there twice"),
        ("a,\n1,2\n", "line 1: column 2 of the header has no name"),
        ("1,2\n3,4\n", "line 1: the header holds the number 1 (the first line names the columns)"),
        (
            "a,Mesh size\n1,2\n",
            'line 1: "Mesh size" is not a parameter name; allowed are letters, digits and _, not a digit first '
            '(for example "Mesh_size")',
        ),
        ('a,b\n1,"x\n2,3\n', "line 3: malformed CSV: unexpected end of data"),
        ('a,b\n1,"x"y\n', "line 2: malformed CSV: ',' expected after '\"'"),
        ("a\n1\nNaN\n", "line 3: NaN in column a is not a parameter value; only finite numbers are"),
        ("a\n1\n1e999\n", "line 3: 1e999 in column a is too large"),
        ("a\n1\n9223372036854775808\n", "line 3: 9223372036854775808 in column a does not fit 64 bits"),
        (
            'a,b\n"x\ny",1\nz,2\nz,2\n',
            "line 5 repeats line 4 (a task is its parameters; to run one several times use sweep.repeat)",
        ),
    ],
)
def test_a_malformed_table_is_told_with_its_line(folder: Path, text: str, problem: str) -> None:
    (folder / "t.csv").write_text(text)
    (folder / "s.toml").write_text(SWEEP + "[table]\nfile = 't.csv'\n")
    assert complaint(folder) == f"DIR/t.csv: {problem}"


def test_a_table_that_is_no_text(folder: Path) -> None:
    (folder / "t.csv").write_bytes(b"a\n1\n\xff\n")
    (folder / "s.toml").write_text(SWEEP + "[table]\nfile = 't.csv'\n")
    assert complaint(folder) == "DIR/s.toml: table.file: DIR/t.csv: line 3: not UTF-8 text"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"sweep": {', "line 1, column 12: JSON syntax: expecting property name enclosed in double quotes"),
        ("[1]", "found [1]; a sweep file is one object of tables"),
        ('{"sweep": {"name": "a", "name": "b"}}', "name: the key is there twice"),
        ('{"sweep": {"command": null}}', "sweep.command: found null; allowed is a list of texts: program, argument, ..."),
        ('{"sweep": {"command": ["ls"]}, "params": {"a": [NaN]}}', "params.a: nan is not a parameter value; only finite "
         "numbers are"),
    ],
)  # fmt: skip
def test_a_json_file_is_checked_alike(folder: Path, text: str, problem: str) -> None:
    (folder / "s.json").write_text(text)
    assert complaint(folder, "s.json") == f"DIR/s.json: {problem}"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (
            "tasks.txt",
            b"\n# nothing\n",
            "DIR/tasks.txt: no task in this file; a task file has one shell line per task",
        ),
        (
            "sweep.tml",
            b"\n[sweep]\n",
            "DIR/sweep.tml: this looks like a sweep file (name it with the suffix .toml)",
        ),
        ("a.out", b"echo\n\0", "DIR/a.out: line 2: a NUL byte; not a text file"),
        ("latin.txt", b"echo 1\necho \xe9\n", "DIR/latin.txt: line 2: not UTF-8 text"),
        (
            "r.h5",
            b"\x89HDF\r\n",
            "DIR/r.h5: this is an HDF5 file, not a sweep file (to look at results: keystone-mpi status DIR/r.h5)",
        ),
    ],
)
def test_a_file_of_another_sort(folder: Path, name: str, content: bytes, problem: str) -> None:
    (folder / name).write_bytes(content)
    assert complaint(folder, name) == problem


def test_a_missing_file_names_its_neighbour(folder: Path) -> None:
    (folder / "poisson.toml").write_text(SWEEP)
    assert complaint(folder, "posson.toml") == 'DIR/posson.toml does not exist (did you mean "poisson.toml"?)'
    assert complaint(folder, "sub") == "DIR/sub is a folder, not a sweep file"


def test_a_script_beside_the_sweep_file_but_not_where_it_starts(folder: Path) -> None:
    (folder / "s.toml").write_text("[sweep]\ncommand = ['python', 'heat.py']\n")
    with pytest.raises(SweepFileError) as caught:
        load_sweep(folder / "s.toml", start_dir=folder / "sub")
    assert str(caught.value).replace(str(folder), "DIR") == (
        'DIR/s.toml: sweep.command[1]: the script "heat.py" does not exist: DIR/sub/heat.py '
        "(it lies beside the sweep file; start keystone-mpi in DIR, or write DIR/heat.py)"
    )


def test_programs_are_not_looked_up_when_told_so(folder: Path) -> None:
    (folder / "s.toml").write_text(
        "[sweep]\ncommand = ['only-on-the-cluster', 'x.py']\n[task]\nstdin = 'x.in'\n"
    )
    load_sweep(folder / "s.toml", start_dir=folder, check_programs=False)
    (folder / "s.toml").write_text(
        "[sweep]\ncommand = ['solver']\n[task]\nenv = { PATH = '/opt/solver/bin' }\n"
    )
    load_sweep(folder / "s.toml", start_dir=folder)


def test_sobol_says_what_it_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ONE + "[sample]\nmethod = 'sobol'\nn = 8\nranges = { x = [0, 1] }\n"
    (folder / "s.toml").write_text(text)
    monkeypatch.setattr(points, "LARGEST_SOBOL", 7)
    assert complaint(folder) == (
        "DIR/s.toml: sample.n: 8 Sobol points of 1 values; at most 7 values are allowed "
        '(method = "random" has no such limit)'
    )
    monkeypatch.setattr(points, "LARGEST_SOBOL", 100)
    monkeypatch.setitem(__import__("sys").modules, "scipy.stats", None)
    assert complaint(folder) == (
        'DIR/s.toml: sample.method: "sobol" needs scipy, which is not installed here '
        '(pip install "keystone_mpi[sample]")'
    )


def test_whole_number_draws_that_repeat(folder: Path) -> None:
    (folder / "s.toml").write_text(
        ONE + "[sample]\nn = 9\nranges = { x = { low = 0, high = 9, type = 'int' } }\n"
    )
    message = complaint(folder)
    assert message.startswith("DIR/s.toml: sample.ranges: whole numbers only: draw ")
    assert message.endswith("(draw fewer points, or list the values in [params])")


def test_a_spec_that_cannot_be_read() -> None:
    with pytest.raises(SweepFileError, match="the stored sweep cannot be read"):
        sweep_from_spec(b"{")
    with pytest.raises(SweepFileError, match="the stored sweep has format 99; this version reads up to 1"):
        sweep_from_spec(b'{"format":99,"name":"x","source":"x","recipe":{},"space":{}}')
