"""Runs the hostile tests again and again, each time with new examples, until the time is over or one fails.

python tests/fuzz.py --minutes 60
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

HOSTILE = Path(__file__).parent / "hostile"
FACTOR = 5  # times the examples of CI, in a round


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    end = time.monotonic() + 60 * parser.parse_args().minutes
    rounds = 0
    while time.monotonic() < end:
        seed = str(secrets.randbelow(2**32))
        print(f"round {rounds + 1}, seed {seed}", flush=True)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-k",
            "not kill and not disk",
            f"--hypothesis-seed={seed}",
        ]
        done = subprocess.run([*command, str(HOSTILE)], env=os.environ | {"LOREDIT_FUZZ": str(FACTOR)}, check=False)
        if done.returncode:
            return done.returncode
        rounds += 1
    print(f"{rounds} rounds of {FACTOR} times the examples of CI, and nothing broke")
    return 0


if __name__ == "__main__":
    sys.exit(main())
