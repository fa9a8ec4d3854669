"""Python functions in parallel: results come back into the program, nothing is written to disk.

python function_tasks.py
mpiexec -n 3 python -m keystone_mpi function_tasks.py
"""

from concurrent.futures import as_completed

import numpy as np

from keystone_mpi import BatchProcessor, KeystoneExecutor, ParallelExecutor


def largest_eigenvalue(size: int, seed: int) -> float:
    """Return the largest eigenvalue of a random symmetric matrix."""
    matrix = np.random.default_rng(seed).normal(size=(size, size))
    return float(np.linalg.eigvalsh(matrix + matrix.T)[-1])


with ParallelExecutor() as executor:
    squares = executor.execute_map(lambda x: x * x, range(8))
    print("squares:", squares)
    tasks = [
        {"id": "works", "func": largest_eigenvalue, "args": (50, 1)},
        {"id": "fails", "func": lambda: 1 / 0},
    ]
    for result in executor.execute_parallel(tasks):
        print(f"  {result.task_id}: {result.status}" + (f" ({result.error})" if result.error else ""))

with BatchProcessor() as processor:
    for row in processor.parameter_sweep(largest_eigenvalue, {"size": [20, 40], "seed": range(2)}):
        print(f"  {row['params']}: {row['result']:.2f}")

with KeystoneExecutor() as pool:
    futures = {pool.submit(np.linalg.norm, np.ones((1000, 1000)) * k): k for k in range(4)}
    for future in as_completed(futures):
        print(f"norm of {futures[future]} * ones: {future.result():.0f}")
