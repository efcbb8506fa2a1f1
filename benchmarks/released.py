"""What a checkout computes, for telling whether a change of the code has changed a result.

    python benchmarks/released.py record before            # in the old checkout
    python benchmarks/released.py record after             # in the new one, on the same machine
    python benchmarks/released.py compare before after     # equal to the last bit, but for times and paths?

In float32, with one thread and seed 0: every editor on eight facts, a batch and a sequential run, an MRPC run
(``--mrpc``), and the routes of a store. Everything goes through the command line and public names, so that checkouts
of different inner layout can be compared. A processor of another kind rounds otherwise: record both on one machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

EDITORS = ("adalora", "adapter", "bitfit", "compacter", "finetune", "lora", "prefix", "roselora", "simplexlora")
VOLATILE = {"edit_seconds", "score_seconds", "seconds"}

ROUTES = """
import json, sys
import loredit
loaded = loredit.load_model("smollm2-135m", dtype="float32")
store = loredit.EditStore.load(sys.argv[1], loaded.model, loaded.tokenizer)
facts = loredit.load_facts(sys.argv[2]).facts[:24]
prompts = [text for f in facts for text in (f.prompt, *f.rephrase_prompts)]
prompts += [probe.prompt for f in facts for group in f.locality.values() for probe in group]
print(json.dumps([[r.fact.case_id] if r.fact else [] for r in store.route(prompts)]))
"""


def record(folder: Path, facts: str, mrpc: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    common = ["--data", facts, "--limit", "8", "--dtype", "float32", "--device", "cpu"]
    for editor in EDITORS:
        run = ["run_edit.py", "--editor", editor, "--hparams", "smollm2.yaml", "--eval", "all", *common]
        _once(folder / editor, run, "--output")
    for mode in ("batch", "sequential"):
        run = ["run_edit.py", "--editor", "lora", "--hparams", "smollm2.yaml", "--mode", mode, *common]
        _once(folder / mode, run, "--output")
    if mrpc.is_dir():
        run = ["-m", "loredit", "classify", "--task", "mrpc", "--editor", "roselora", "--data", str(mrpc)]
        options = ["--seeds", "2", "--limit", "64", "--set", "steps=8", "--dtype", "float32", "--device", "cpu"]
        _once(folder / "mrpc", [*run, *options], "--output")
    else:
        print(f"no {mrpc}: the MRPC run is left out")
    if not (folder / "store").exists():
        run = ["-m", "loredit", "apply", str(folder / "store"), "--editor", "roselora", "--hparams", "smollm2.yaml"]
        _python([*run, *common])
    if not (folder / "routes.json").exists():
        (folder / "routes.json").write_text(_python(["-c", ROUTES, str(folder / "store"), facts]), encoding="utf-8")


def _once(target: Path, arguments: list[str], output: str) -> None:
    if not any((target / name).exists() for name in ("summary.json", "metrics.json")):
        _python([*arguments, output, str(target)])


def _python(arguments: list[str]) -> str:
    print(" ".join(arguments[:6]), "...", flush=True)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], env=env, check=True, stdout=subprocess.PIPE, text=True).stdout


def compare(before: Path, after: Path) -> list[str]:
    """The results that differ."""
    names = sorted(
        path.relative_to(before)
        for pattern in ("*/*.jsonl", "*/metrics.json", "routes.json")
        for path in before.glob(pattern)
    )
    return [str(name) for name in names if not _holds(_read(after / name), _read(before / name))]


def _holds(new: Any, old: Any) -> bool:
    """Whether all that was there before is there, and the same; what a newer version tells besides is no difference."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and _holds(new[key], old[key]) for key in old)
    if isinstance(old, list):
        return isinstance(new, list) and len(new) == len(old) and all(map(_holds, new, old))
    return bool(new == old)


def _read(path: Path) -> Any:
    """The file's records in order of their case, without times; NaN as null, so that it equals itself."""
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    records = (
        [json.loads(line, parse_constant=lambda _: None) for line in text.splitlines() if line.strip()]
        if (path.suffix == ".jsonl")
        else json.loads(text)
    )
    return _without_times(records)


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(part) for key, part in value.items() if key not in VOLATILE}
    return [_without_times(part) for part in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("record", help="compute everything, into a folder; what is there already is kept")
    one.add_argument("folder", type=Path)
    one.add_argument("--facts", default="samples", help="a file of facts, the same for both checkouts")
    one.add_argument("--mrpc", type=Path, default=Path("../shared/data/mrpc"))
    two = commands.add_parser("compare", help="exit with 1 and the names of the results that differ")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "record":
        record(chosen.folder.resolve(), chosen.facts, chosen.mrpc.resolve())
    elif differing := compare(chosen.before, chosen.after):
        raise SystemExit("different: " + ", ".join(differing))
    else:
        print("equal")


if __name__ == "__main__":
    main()
