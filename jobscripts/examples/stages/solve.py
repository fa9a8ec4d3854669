"""Second stage: -u'' = load on the mesh of the first stage, u = 0 at both ends."""

import argparse
import json

import numpy as np

parser = argparse.ArgumentParser(description="Solve -u'' = load.")
parser.add_argument("--size", type=int, required=True)
parser.add_argument("--load", type=float, required=True)
parser.add_argument("--folder", required=True)
options = parser.parse_args()
nodes = np.load(f"{options.folder}/mesh-{options.size}.npy")
h = nodes[1] - nodes[0]
inner = len(nodes) - 2
matrix = (2 * np.eye(inner) - np.eye(inner, k=1) - np.eye(inner, k=-1)) / h**2
solution = np.linalg.solve(matrix, np.full(inner, options.load))
np.save(f"{options.folder}/solution-{options.size}-{options.load:g}.npy", solution)
print(json.dumps({"deflection": float(solution.max())}))
