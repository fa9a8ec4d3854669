"""Submit, wait, look at the statistics; then a race of which only the winner finishes.

python parallel_orchestration.py
mpiexec -n 3 python -m keystone_mpi parallel_orchestration.py
"""

from pathlib import Path

from keystone_mpi import TaskPipeline

HEAT = Path(__file__).resolve().parent.parent / "demo" / "heat.py"

with TaskPipeline("orchestration.h5", resume=True) as pipeline:
    # Six solvers side by side, on as many cores as there are.
    sizes = [16, 24, 32, 48, 64, 96]
    ids = pipeline.submit_workflow(
        [{"tool": "python", "script": HEAT, "params": {"mesh_size": size}} for size in sizes],
        sequential=False,
    )
    status = pipeline.wait_for_workflow(ids, timeout=120)
    print(f"{status['completed']} of {status['total']} solved")
    for size, task_id in zip(sizes, ids, strict=True):
        outputs = status["tasks"][task_id]["result"]["outputs"]
        print(f"  mesh {size:3d}: error {outputs['error_max']:.2e}")

    stats = pipeline.get_parallel_execution_stats(ids)
    print(
        f"speedup {stats['speedup']:.2f}: {stats['total_duration']:.2f} s of work in "
        f"{stats['elapsed_s']:.2f} s, efficiency {stats['efficiency']:.0%} of "
        f"{stats['usable_slots']:.0f} slots"
    )

    # A race: whoever is first wins, the others are stopped at once.
    racers = {
        pipeline.submit_task("command", ["sleep", "{seconds}"], {"seconds": seconds}): seconds
        for seconds in (0.3, 25.0, 30.0)
    }
    winner = pipeline.wait_for_any(racers, timeout=60)
    cancelled = [task_id for task_id in racers if pipeline.cancel_task(task_id)]
    final = pipeline.wait_for_workflow(racers, timeout=60)
    print(f"the race: task {winner['task_id']} won ({racers[winner['task_id']]} s)")
    print(f"cancelled: {len(cancelled)}, states: {sorted(str(t['state']) for t in final['tasks'].values())}")
