"""Compare what ran with tests/required.txt, so that no test goes missing as a skip.

    pytest (conftest) --> report, one JSON object a line: mpi, test, outcome --> here

A line of required.txt is ``MPI TEST``, the test without its parameters: at least
one of its variants must have passed, and none may have been skipped or failed.
"""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path

REQUIRED_PATH = Path(__file__).with_name("required.txt")
HEADING = "# What must run and pass in CI; written by tests/run.sh --update-required\n"


def read_reports(paths: list[str]) -> list[dict[str, str]]:
    """Return all reported tests; a report that is not there holds none."""
    lines = [line for path in paths if Path(path).exists() for line in Path(path).read_text().splitlines()]
    return [json.loads(line) for line in lines]


def outcomes_by_test(reports: list[dict[str, str]]) -> dict[str, set[str]]:
    """Return ``MPI TEST`` -> the outcomes of its variants."""
    outcomes: dict[str, set[str]] = collections.defaultdict(set)
    for report in reports:
        outcomes[f"{report['mpi']} {report['test'].split('[')[0]}"].add(report["outcome"])
    return outcomes


def main(arguments: list[str]) -> int:
    """Check, update or sum up."""
    flags = [argument for argument in arguments if argument.startswith("--")]
    reports = read_reports([argument for argument in arguments if not argument.startswith("--")])
    outcomes = outcomes_by_test(reports)
    passed = sorted(test for test, found in outcomes.items() if found == {"passed"})
    if "--summary" in flags:
        counts = collections.Counter(report["outcome"] for report in reports)
        print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
        return 0
    if "--update" in flags:
        if any("failed" in found for found in outcomes.values()):
            print("required.txt is unchanged: some tests failed")
            return 1
        REQUIRED_PATH.write_text(HEADING + "".join(f"{test}\n" for test in passed))
        print(f"required.txt: {len(passed)} tests")
        return 0
    if not REQUIRED_PATH.exists():
        print(f"{REQUIRED_PATH} is missing: tests/run.sh --update-required writes it")
        return 1
    lines = REQUIRED_PATH.read_text().splitlines()
    required = [line for line in lines if line.strip() and not line.startswith("#")]
    missing = [test for test in required if test not in set(passed)]
    for test in missing:
        print(f"required, but {' and '.join(sorted(outcomes.get(test, {'not run'})))}: {test}")
    unlisted = set(passed) - set(required)
    if unlisted:
        print(f"{len(unlisted)} tests are not in required.txt yet: tests/run.sh --update-required")
    print(f"{len(required) - len(missing)} of {len(required)} required tests ran and passed")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
