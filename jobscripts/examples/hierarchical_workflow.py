"""Mesh, solve, analyse: each stage waits for the tasks it needs, not for all of the stage before.

python hierarchical_workflow.py
mpiexec -n 3 python -m keystone_mpi hierarchical_workflow.py
"""

from pathlib import Path

from keystone_mpi import TaskPipeline

STAGES = Path(__file__).resolve().parent / "stages"
FOLDER = Path("stages_data").resolve()
SIZES = [20, 40, 80]
LOADS = [1.0, 2.0]

with TaskPipeline("hierarchy.h5", resume=True) as pipeline:
    FOLDER.mkdir(exist_ok=True)
    folder = str(FOLDER)
    solves = []
    for size in SIZES:
        mesh = pipeline.submit_task("python", STAGES / "mesh.py", {"size": size, "folder": folder})
        solves += [
            pipeline.submit_task(
                "python",
                STAGES / "solve.py",
                {"size": size, "load": load, "folder": folder},
                depends_on=[mesh],
            )
            for load in LOADS
        ]
    analysis = pipeline.submit_task("python", STAGES / "analyse.py", {"folder": folder}, depends_on=solves)

    done = pipeline.wait_for_task(analysis, timeout=120)
    print(f"analysis: {done['status']}, {done['outputs']['files']} solutions")
    print(f"largest deflection {done['outputs']['largest']:.5f} (exact for load 2: {2 / 8:.5f})")
    for task_id in solves:
        status = pipeline.get_task_status(task_id)
        shown = ", ".join(f"{name} {status['params'][name]}" for name in ("size", "load"))
        print(f"  task {task_id} ({shown}): {status['state']} in {status['duration_seconds']:.2f} s")
