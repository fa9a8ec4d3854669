"""Each task that asks for GPUs sees its own, and never one that another task has; made-up devices."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
from runs_support import shell, states, write_sweep

pytestmark = pytest.mark.multirank

NOTE = """exec 9>lock; flock 9; echo "start $CUDA_VISIBLE_DEVICES" >> log; flock -u 9; sleep 0.15
flock 9; echo "end $CUDA_VISIBLE_DEVICES" >> log
echo '{{"cuda": "'$CUDA_VISIBLE_DEVICES'", "rocr": "'$ROCR_VISIBLE_DEVICES'"}}' # {x}"""


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_task_has_its_own_device(mpiexec, tmp_path: Path, ranks: int) -> None:
    sweep = write_sweep(tmp_path, shell(NOTE), "x = { range = [0, 16, 1] }", "[task]\ngpus = 1\ncores = 1\n")
    devices = {"CUDA_VISIBLE_DEVICES": "2,3,5", "ROCR_VISIBLE_DEVICES": "GPU-a,GPU-b,GPU-c"}
    mpiexec(["keystone-mpi", "run", sweep, "--slots", "8"], n=ranks, env=devices).check()
    busy: set[str] = set()
    most = 0
    for line in (tmp_path / "log").read_text().splitlines():
        what, device = line.split()
        if what == "start":
            assert device not in busy, "two tasks on one device"
            busy.add(device)
            most = max(most, len(busy))
        else:
            busy.discard(device)
    assert most == 3, "all devices were used"
    with h5py.File(tmp_path / "demo.h5") as file:
        pairs = set(zip(file["results/cuda"].asstr()[:], file["results/rocr"].asstr()[:], strict=True))
    assert pairs == {("2", "GPU-a"), ("3", "GPU-b"), ("5", "GPU-c")}


def test_two_devices_per_task_and_too_many(keystone, tmp_path: Path) -> None:
    sweep = write_sweep(
        tmp_path,
        shell("""echo '{{"cuda": "'$CUDA_VISIBLE_DEVICES'"}}' # {n}"""),
        "n = [1, 2, 4]",
        '[task]\ngpus = "{n}"\n',
    )
    done = keystone(["run", sweep, "--slots", "4"], env={"CUDA_VISIBLE_DEVICES": "0,1,2"}).check(1)
    assert states(tmp_path / "demo.h5") == ["SUCCESS", "SUCCESS", "FAILURE"]
    assert "the largest worker has 3 GPUs" in done.stdout
    with h5py.File(tmp_path / "demo.h5") as file:
        assert [len(text.split(",")) for text in file["results/cuda"].asstr()[:2]] == [1, 2]
