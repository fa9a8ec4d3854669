"""A coarse grid, a look at the results, a finer grid where it matters.

Looks for the conductivity at which the plate's highest temperature is 0.5.

    python adaptive_sweep.py
    mpiexec -n 3 python -m keystone_mpi adaptive_sweep.py
"""

from pathlib import Path

import numpy as np

from keystone_mpi import TaskPipeline

HEAT = Path(__file__).resolve().parent.parent / "demo" / "heat.py"
TARGET = 0.5
ROUNDS = 5
POINTS = 7

with TaskPipeline("adaptive.h5", resume=True) as pipeline:
    low, high = 0.2, 3.0
    for round_number in range(1, ROUNDS + 1):
        kappas = np.linspace(low, high, POINTS)
        ids = pipeline.parameter_sweep(
            "python", HEAT, {"problem": ["poisson"], "mesh_size": [32], "kappa": kappas}
        )
        tasks = pipeline.wait_for_workflow(ids, timeout=120)["tasks"]
        u_max = np.array([tasks[task_id]["result"]["outputs"]["u_max"] for task_id in ids])
        best = int(np.argmin(abs(u_max - TARGET)))
        print(
            f"round {round_number}: kappa in [{low:.4f}, {high:.4f}], "
            f"best {kappas[best]:.4f} with u_max {u_max[best]:.4f}"
        )
        low, high = kappas[max(best - 1, 0)], kappas[min(best + 1, POINTS - 1)]

print(f"kappa = {kappas[best]:.3f} gives u_max = {u_max[best]:.4f} (wanted {TARGET})")
