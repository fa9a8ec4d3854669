"""What runs inside solvers: `keystone_solver`, one file that any Python can import or copy.

Rule: this folder holds nothing else, because it is put on the PYTHONPATH of
solvers whose interpreter is not ours.
"""
