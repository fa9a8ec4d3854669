"""Every combination of two parameters, as a table; any iterable serves as values.

python parameter_sweep.py
mpiexec -n 3 python -m keystone_mpi parameter_sweep.py
"""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np

from keystone_mpi import TaskPipeline

HEAT = Path(__file__).resolve().parent.parent / "demo" / "heat.py"
SIZES = [8, 16, 32]
KAPPAS = np.linspace(0.5, 2.0, 3)


def report(batch: dict) -> None:
    """Say how far the submission is."""
    print(f"batch {batch['batch_num']}: {batch['submitted']} of {batch['total']} submitted")


with TaskPipeline("sweep.h5", resume=True) as pipeline:
    # The script takes --problem, --mesh_size and --kappa: parameters are options of its command line.
    grid = {"problem": ["poisson"], "mesh_size": SIZES, "kappa": KAPPAS}
    ids = pipeline.parameter_sweep("python", HEAT, grid, callback=report)
    tasks = pipeline.wait_for_workflow(ids, timeout=120)["tasks"].values()

error = {(t["params"]["mesh_size"], t["params"]["kappa"]): t["result"]["outputs"]["error_l2"] for t in tasks}
print("error_l2    " + "".join(f"  kappa {kappa:4.2f}" for kappa in KAPPAS))
for size in SIZES:
    print(f"mesh {size:3d}    " + "".join(f"  {error[size, float(kappa)]:10.2e}" for kappa in KAPPAS))
orders = [math.log2(error[a, 1.25] / error[b, 1.25]) for a, b in pairwise(SIZES)]
print("observed order of convergence: " + ", ".join(f"{order:.2f}" for order in orders))
print("results in sweep.h5, group /results, one row per task")
