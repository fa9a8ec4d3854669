"""Last stage: look at all solutions."""

import argparse
import glob
import json

import numpy as np

parser = argparse.ArgumentParser(description="Look at all solutions.")
parser.add_argument("--folder", required=True)
options = parser.parse_args()
files = sorted(glob.glob(f"{options.folder}/solution-*.npy"))
print(json.dumps({"files": len(files), "largest": max(float(np.load(name).max()) for name in files)}))
