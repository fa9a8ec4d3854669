"""First stage: write the nodes of a bar."""

import argparse
import json

import numpy as np

parser = argparse.ArgumentParser(description="Write the nodes of a bar.")
parser.add_argument("--size", type=int, required=True)
parser.add_argument("--folder", required=True)
options = parser.parse_args()
np.save(f"{options.folder}/mesh-{options.size}.npy", np.linspace(0.0, 1.0, options.size + 1))
print(json.dumps({"nodes": options.size + 1}))
