"""Tasks that are decided while others run, with a bounded number in flight.

Random search for the conductivity whose highest temperature is 0.5: whenever a
task ends, the next is drawn near the best so far.

    python dynamic_submission.py
    mpiexec -n 3 python -m keystone_mpi dynamic_submission.py
"""

import random
from pathlib import Path

from keystone_mpi import TaskPipeline

HEAT = Path(__file__).resolve().parent.parent / "demo" / "heat.py"
TARGET = 0.5
BUDGET = 24
IN_FLIGHT = 4

rng = random.Random(7)
best_kappa, best_miss = 1.0, float("inf")
submitted = done = most_in_flight = 0
running: set[str] = set()

with TaskPipeline("dynamic.h5", resume=True) as pipeline:
    while done < BUDGET:
        while len(running) < IN_FLIGHT and submitted < BUDGET:
            spread = 0.5 * 0.9**done
            kappa = round(best_kappa * (1 + spread * rng.uniform(-1, 1)), 6)
            running.add(pipeline.submit_task("python", HEAT, {"mesh_size": 24, "kappa": kappa}))
            submitted += 1
        most_in_flight = max(most_in_flight, len(running))
        ended = pipeline.wait_for_any(running, timeout=60)
        running.remove(ended["task_id"])
        done += 1
        task = ended["status"]
        miss = abs(task["result"]["outputs"]["u_max"] - TARGET)
        if miss < best_miss:
            best_kappa, best_miss = task["params"]["kappa"], miss
            print(f"task {ended['task_id']:>2}: kappa {best_kappa:.4f} misses {TARGET} by {best_miss:.4f}")

print(f"{done} tasks, at most {most_in_flight} in flight; best kappa {best_kappa:.4f}")
