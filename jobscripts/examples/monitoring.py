"""Watching tasks from the program: progress by callback, one task closely, the engine's health.

From another shell: keystone-mpi status monitoring.h5

    python monitoring.py
    mpiexec -n 3 python -m keystone_mpi monitoring.py
"""

from keystone_mpi import TaskPipeline


def show(status: dict) -> None:
    """Print one line of progress."""
    done = status["completed"] + status["failed"]
    bar = "#" * (20 * done // status["total"])
    print(
        f"[{bar:<20}] {done}/{status['total']} done, {status['failed']} failed, "
        f"{status['running']} running, {status['pending']} waiting"
    )


with TaskPipeline("monitoring.h5", resume=True) as pipeline:
    health = pipeline.health_check()
    print(f"engine: {health['status']}, {health['slots']} slots on {', '.join(health['hosts'])}")
    for name, tool in pipeline.list_available_simulations().items():
        print(f"  {name:9s} {'ready' if tool['available'] else 'not installed'}: {tool['description']}")

    # The seventh fails, once is not enough: it gets a second attempt and fails again.
    command = ["/bin/sh", "-c", "sleep {seconds}; test {number} -ne 7"]
    tasks = [
        {
            "tool": "command",
            "script": command,
            "params": {"number": number, "seconds": 0.1 + 0.05 * (number % 3)},
            "retries": 1,
        }
        for number in range(10)
    ]
    ids = pipeline.submit_batch_workflow(tasks)
    status = pipeline.wait_for_workflow(ids, timeout=120, callback=show, poll_interval=0.5)
    for task_id, task in status["tasks"].items():
        if task["failed"]:
            print(f"task {task_id} failed after {task['attempts']} attempts: {task['error']}")

    last = pipeline.submit_task("command", ["sleep", "{seconds}"], {"seconds": 0.6})
    final = pipeline.monitor_task(
        last, callback=lambda task: print(f"task {task['task_id']}: {task['state']}"), poll_interval=0.2
    )
    print(f"task {last} took {final['duration_seconds']:.1f} s on {final['host']}")
