"""What a developer runs: `python tools/dev.py check | test | docs`; further words go to pytest (`test -k config`)."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
LINT = (
    (PYTHON, "-m", "ruff", "check", "."),
    (PYTHON, "-m", "ruff", "format", "--check", "."),
    (PYTHON, "-m", "mypy"),
    (PYTHON, "tools/check_repo.py"),
)
DOCS = (PYTHON, "tools/config_reference.py")


def main() -> int:
    """Run one command; all its parts run, and the exit code is 1 if any of them fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("check", "lint", "test", "docs"))
    command, words = parser.parse_known_args()
    steps = {
        "check": (*LINT, (PYTHON, "-m", "pytest", "-m", "", *words)),
        "lint": LINT,
        "test": ((PYTHON, "-m", "pytest", *words),),
        "docs": (DOCS,),
    }
    # One thread per process: with two, small operations become many times slower as soon as anything else runs.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    failed = []
    for step in steps[command.command]:
        shown = " ".join(step[1:])
        print(f"$ python {shown}", flush=True)
        if subprocess.run(step, cwd=ROOT, env=environment, check=False).returncode != 0:
            failed.append(shown)
    for shown in failed:
        print(f"failed: python {shown}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
