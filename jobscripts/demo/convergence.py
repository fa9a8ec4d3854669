"""Read a sweep of the demo with plain h5py and print its table of convergence.

    python convergence.py poisson.h5

The exit code is 0 when every error falls at order 2, else 1.
"""

from __future__ import annotations

import math
import sys

import h5py

SUCCESS = 2  # see the attributes flag_values and flag_meanings of /tasks/state


def main(path: str) -> int:
    """Print error and order for every conductivity."""
    with h5py.File(path, "r", locking=False) as file:
        state = file["tasks/state"][:]
        mesh_size = file["params/mesh_size"][:]
        kappa = file["params/kappa"][:]
        error = file["results/error_l2"][:]

    done = state == SUCCESS
    print(f"{path}: {done.sum()} of {len(done)} tasks succeeded")
    orders = []
    for value in sorted(set(kappa[done])):
        print(f"\n  kappa = {value:g}\n  mesh        h    error (L2)   order")
        coarser = None
        here = done & (kappa == value)
        rows = sorted(zip(mesh_size[here].tolist(), error[here].tolist(), strict=True))
        for n, e in rows:
            order = math.log(coarser[1] / e) / math.log(n / coarser[0]) if coarser else None
            print(f"  {n:4d}  {1 / n:7.4f}    {e:.4e}" + ("" if order is None else f"    {order:.2f}"))
            coarser = (n, e)
            if order is not None:
                orders.append(order)
    if not done.all() or not orders:
        print("\nnot every task succeeded: no verdict")
        return 1
    good = all(abs(order - 2.0) < 0.1 for order in orders)
    print(
        f"\norder of convergence {min(orders):.2f} to {max(orders):.2f}: {'as expected' if good else 'NOT 2'}"
    )
    return 0 if good else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python convergence.py FILE.h5")
    sys.exit(main(sys.argv[1]))
