"""Job scripts compared whole, and the settings that they are made of. No cluster needed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

from keystone_mpi.core.errors import SweepFileError, UserError
from keystone_mpi.slurm.profile import JobSettings, load_profile, load_sweep_settings, profile_path
from keystone_mpi.slurm.script import JobRequest, job_script, launch_line, merge_script
from keystone_mpi.slurm.submit import LAUNCHERS, choose_launcher, family_of, write_script

PLAIN = JobRequest(
    name="poisson",
    program="/opt/venv/bin/keystone-mpi",
    folder="/home/ada/work",
    script="poisson.job.sh",
    sweep="poisson.toml",
    output="poisson.h5",
    launcher="srun --mpi=pmi2",
)

PLAIN_TEXT = """\
#!/bin/bash
# Written by keystone-mpi submit; submit it again to continue: sbatch poisson.job.sh
#SBATCH --job-name=poisson
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=02:00:00
#SBATCH --signal=USR1@300
#SBATCH --no-requeue
#SBATCH --chdir=/home/ada/work
#SBATCH --output=poisson.%j.log
#SBATCH --open-mode=append

set -u

srun --mpi=pmi2 --kill-on-bad-exit=1 --cpu-bind=none \\
    /opt/venv/bin/keystone-mpi run poisson.toml --output poisson.h5
code=$?

exit $code
"""

FULL_TEXT = (
    """\
#!/bin/bash
# Written by keystone-mpi submit; submit it again to continue: sbatch 'out put/p 1.job.sh'
#SBATCH --job-name="p 1"
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=2
#SBATCH --time=1-12:00:00
#SBATCH --signal=USR1@300
#SBATCH --partition=long
#SBATCH --account=ab12
#SBATCH --qos=high
#SBATCH --constraint="a&b c"
#SBATCH --reservation=day
#SBATCH --mem=60G
#SBATCH --gpus-per-node=4
#SBATCH --array=1-10%4
#SBATCH --requeue
#SBATCH --chdir=/home/ada/work
#SBATCH --output="out put/p 1.%A_%a.log"
#SBATCH --open-mode=append
#SBATCH --exclude=node7

set -u
module load gcc
source ~/venv/bin/activate

ended() {   # how many tasks have ended so far
    /opt/venv/bin/keystone-mpi status --json 'out put/p 1.shard-'"$SLURM_ARRAY_TASK_ID"-of-10.h5 2>/dev/null |
        awk -F'[:,]' '/^  "(completed|failed)"/ { n += $2 } END { print n + 0 }'
}
before=$(ended)

srun --mpi=cray_shasta --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \\
    /opt/venv/bin/keystone-mpi run 'a b.toml' --output 'out put/p 1.h5' --retry-failed """
    + """\
--shard "$SLURM_ARRAY_TASK_ID/10"
code=$?

case $code in
0 | 1 | 2 | 70) exit $code ;;   # all done, or nothing that another start would mend
esac
after=$(ended)
if [ "$after" -gt "$before" ]; then
    echo "stopped with work left ($before tasks had ended before, $after now): again"
    scontrol requeue "$SLURM_JOB_ID"
else
    echo "stopped with work left, and no task ended in this round: not again" >&2
fi
exit $code
"""
)

MERGE_TEXT = """\
#!/bin/bash
# Written by keystone-mpi submit; merges what is there, again and again: sbatch 'out put/p 1.merge.sh'
#SBATCH --job-name="p 1"-merge
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --time=01:00:00
#SBATCH --chdir=/home/ada/work
#SBATCH --output="out put/p 1-merge.%j.log"
#SBATCH --open-mode=append
#SBATCH --partition=long
#SBATCH --account=ab12
#SBATCH --qos=high
#SBATCH --constraint="a&b c"
#SBATCH --reservation=day
#SBATCH --exclude=node7

set -u
module load gcc
source ~/venv/bin/activate

/opt/venv/bin/keystone-mpi merge 'out put/p 1.h5' --shards 10
"""

MPIEXEC_TEXT = """\
#!/bin/bash
# Written by keystone-mpi submit; submit it again to continue: sbatch poisson.job.sh
#SBATCH --job-name=poisson
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=2
#SBATCH --exclusive
#SBATCH --time=00:30:00
#SBATCH --signal=B:USR1@90
#SBATCH --no-requeue
#SBATCH --chdir=/home/ada/work
#SBATCH --output=poisson.%j.log
#SBATCH --open-mode=append

set -u

mpiexec -n 6 -ppn 2 \\
    /opt/venv/bin/keystone-mpi run poisson.toml --output poisson.h5 &
job=$!
trap 'kill -USR1 "$job" 2>/dev/null' USR1   # the warning before the end: what runs is finished
wait "$job"
code=$?
while kill -0 "$job" 2>/dev/null; do   # a signal ends `wait` early
    wait "$job"
    code=$?
done

exit $code
"""

FULL = msgspec.structs.replace(
    PLAIN,
    name="p 1",
    script="out put/p 1.job.sh",
    sweep="a b.toml",
    output="out put/p 1.h5",
    launcher="srun --mpi=cray_shasta",
    nodes=2,
    ranks_per_node=8,
    cores_per_node=16,
    time_s=36 * 3600.0,
    partition="long",
    account="ab12",
    qos="high",
    constraint="a&b c",
    reservation="day",
    memory="60G",
    gpus_per_node=4,
    array=10,
    at_once=4,
    requeue=True,
    setup=("module load gcc", "source ~/venv/bin/activate"),
    run_options=("--retry-failed",),
    options=("--exclude=node7",),
)
MPIEXEC = msgspec.structs.replace(
    PLAIN, nodes=3, ranks_per_node=2, time_s=1800.0, launcher=LAUNCHERS["mpich"].mpiexec
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (job_script(msgspec.structs.replace(PLAIN, nodes=4, time_s=7200.0)), PLAIN_TEXT),
        (job_script(FULL), FULL_TEXT),
        (merge_script(FULL), MERGE_TEXT),
        (job_script(MPIEXEC), MPIEXEC_TEXT),
    ],
    ids=["plain", "everything", "merge", "mpiexec"],
)
def test_a_script_is_exactly_this(text: str, expected: str) -> None:
    assert text == expected
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_a_requeue_without_an_array_falls_back_to_submitting_itself() -> None:
    text = job_script(msgspec.structs.replace(PLAIN, requeue=True))
    assert '    scontrol requeue "$SLURM_JOB_ID" || sbatch poisson.job.sh\n' in text


def test_a_launcher_keeps_what_it_says_itself() -> None:
    line = "srun --mpi=pmix --cpu-bind=cores --kill-on-bad-exit=0 --cpus-per-task=3"
    assert launch_line(msgspec.structs.replace(PLAIN, launcher=line, cores_per_node=3)) == line
    assert launch_line(msgspec.structs.replace(PLAIN, launcher="aprun -n {ranks} -N {ranks_per_node}")) == (
        "aprun -n 1 -N 1"
    )


@pytest.mark.parametrize("bad", ['a"b', "a\nb", "a\\b"])
def test_what_sbatch_cannot_read_is_refused(bad: str) -> None:
    with pytest.raises(UserError, match="job script"):
        job_script(msgspec.structs.replace(PLAIN, constraint=bad))


@pytest.mark.parametrize(
    ("version", "family"),
    [
        ("Open MPI v5.0.11, package: Open MPI user@localhost", "openmpi"),
        ("MPICH Version:      5.0.2\nMPICH Device:       ch4:ofi", "mpich"),
        ("Intel(R) MPI Library 2021.9 for Linux* OS", "mpich"),
        ("MVAPICH2 Version: 2.3.7", "mpich"),
        ("Something else", ""),
    ],
)
def test_the_library_decides_the_flag(version: str, family: str) -> None:
    assert family_of(version) == family


def test_a_whole_launcher_line_needs_no_library() -> None:
    assert choose_launcher("srun --mpi=cray_shasta") == "srun --mpi=cray_shasta"


# --- settings ------------------------------------------------------------------------------------


def test_nearer_settings_win_and_lists_add_up() -> None:
    site = JobSettings(partition="site", account="a", setup=("module load x",), options=("--mail-type=END",))
    sweep = JobSettings(partition="sweep", nodes=4, setup=("source env.sh",))
    line = JobSettings(nodes=2, options=("--exclude=node7",))
    found = line.over(sweep).over(site)
    assert (found.nodes, found.partition, found.account) == (2, "sweep", "a")
    assert found.setup == ("module load x", "source env.sh")
    assert found.options == ("--mail-type=END", "--exclude=node7")


def test_the_site_profile(tmp_path: Path) -> None:
    path = tmp_path / "keystone-mpi.toml"
    assert profile_path({"XDG_CONFIG_HOME": str(tmp_path)}) == path
    assert profile_path({"HOME": "/home/ada"}) == Path("/home/ada/.config/keystone-mpi.toml")
    assert load_profile({"XDG_CONFIG_HOME": str(tmp_path)}) == JobSettings()
    path.write_text(
        '[slurm]\nlauncher = "srun --mpi=cray_shasta"\nsetup = ["module load x"]\ntime = "90min"\n'
    )
    found = load_profile({"KEYSTONE_PROFILE": str(path)})
    assert found == JobSettings(launcher="srun --mpi=cray_shasta", setup=("module load x",), time_s=5400.0)
    with pytest.raises(SweepFileError, match="does not exist"):
        load_profile({"KEYSTONE_PROFILE": str(tmp_path / "absent.toml")})


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("partion = 'x'", "partition"),
        ("nodes = 0", "at least 1"),
        ("time = 120", "2h"),
        ("time = '120'", "120min"),
        ("setup = 'module load x'", "list of texts"),
        ("account = ''", "not empty"),
    ],
)
def test_a_mistake_in_the_slurm_table_gets_one_line(tmp_path: Path, table: str, words: str) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(f"[slurm]\n{table}\n")
    with pytest.raises(UserError, match=r"slurm|time") as caught:
        load_sweep_settings(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_file_has_no_settings(tmp_path: Path) -> None:
    assert load_sweep_settings(tmp_path / "tasks.txt") == JobSettings()


def test_only_our_own_script_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.job.sh"
    write_script(path, PLAIN_TEXT)
    write_script(path, MPIEXEC_TEXT)
    assert path.read_text() == MPIEXEC_TEXT
    assert path.stat().st_mode & 0o111
    path.write_text("#!/bin/sh\n")
    with pytest.raises(UserError, match="not written by keystone-mpi"):
        write_script(path, PLAIN_TEXT)
