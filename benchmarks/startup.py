"""How long the commands that only look take to answer, on a store of 500 artifacts, beside a bare interpreter.

`seconds`: per command the median wall-clock time of whole processes, taken in turns; `heavy`: which of the slow
libraries it loads (none is expected); `help_s`, `show_s`, `python_s`, `worst_s`: four of the seconds by themselves.
A plan also reads and measures all data, with numpy and the tokenizer: it is listed, and not among the worst.
`plan_ratio` is its time in an empty folder over that of the libraries of the command line, imported alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from adpa_cli.cli.commands import every
from adpa_cli.store.identity import Recipe
from adpa_cli.store.manifest import FILE_NAME, Manifest, utc
from adpa_cli.store.store import Store

HEAVY = ("torch", "transformers", "datasets", "accelerate", "pyarrow", "tokenizers", "pandas", "numpy")
LOADED = (
    "import atexit, json, sys; atexit.register(lambda: print(json.dumps([name for name in "
    f"{HEAVY} if name in sys.modules]), file=sys.stderr)); from adpa_cli.cli.main import run; run()"
)
LOOKS = (
    "show", "show --all --json", "show sft@latest", "path sft@latest", "tag", "methods", "methods adpa", "models",
    "env", "gc -n",
)  # fmt: skip
PLAN = "plan distill --method adpa+ --student tiny"
IMPORTS = "import typer, rich.console"
NEW = f"{PLAN} (empty folder)"
COMPLETED = ("di", "distill --method ad", "distill --method adpa --set gam", "show ", "distill --student t")


def fill(folder: Path, count: int) -> Path:
    """A store of `count` checkpoints, each made from the one before; manifests only, as the list reads no more."""
    store = Store.find(folder / "adpa-store", create=True)
    before = "model:" + "a" * 64
    for n in range(count):
        recipe = Recipe("sft", 1, {"lr": 1e-5, "seed": n}, {"model": before, "data": "data:" + "d" * 64})
        manifest = Manifest(
            id=recipe.id, **recipe.to_json(), sources={}, files={}, metrics={"what": f"checkpoint {n}"},
            made={"at": utc(1e9 + n), "command": "adpa sft --model tiny"},
        )  # fmt: skip
        path = store.root / manifest.ref / FILE_NAME
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(asdict(manifest)), encoding="utf-8")
        before = f"artifact:{recipe.id}"
    return store.root


def commands() -> dict[str, tuple[list[str], dict[str, str]]]:
    """What is measured: per name the words after `adpa`, and what is added to the environment."""
    names = list(every())
    lines = ["--help", *(f"{name} --help" for name in names), *LOOKS, PLAN]
    found: dict[str, tuple[list[str], dict[str, str]]] = {line: (shlex.split(line), {}) for line in lines}
    for line in COMPLETED:
        words = ["adpa", *line.split(" ")]
        asked = {"_ADPA_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
        found[f"{line} TAB"] = ([], asked)
    return found


def seconds(argv: list[str], folder: Path, environment: Mapping[str, str]) -> float:
    """Wall-clock time of one process."""
    start = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, cwd=folder, env={**os.environ, **environment})
    return time.perf_counter() - start


def loaded(words: list[str], folder: Path, environment: Mapping[str, str]) -> list[str]:
    """The slow libraries that a command loads."""
    argv = [sys.executable, "-c", LOADED, *words]
    done = subprocess.run(
        argv, check=True, capture_output=True, text=True, cwd=folder, env={**os.environ, **environment}
    )
    return list(json.loads(done.stderr.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=int, default=500)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    measured = commands()
    with tempfile.TemporaryDirectory() as name:
        folder = fill(Path(name), args.artifacts).parent
        argvs = {line: ([sys.executable, "-m", "adpa_cli", *words], env) for line, (words, env) in measured.items()}
        argvs["python"] = ([sys.executable, "-c", "pass"], {})
        argvs[IMPORTS] = ([sys.executable, "-c", IMPORTS], {})
        argvs[NEW] = argvs[PLAN]
        (folder / "empty").mkdir()
        times: dict[str, list[float]] = {line: [] for line in argvs}
        for _ in range(args.runs):
            for line, (argv, environment) in argvs.items():
                times[line].append(seconds(argv, folder / "empty" if line == NEW else folder, environment))
        heavy = {line: loaded(words, folder, environment) for line, (words, environment) in measured.items()}
    result = {line: round(statistics.median(taken), 3) for line, taken in times.items()}
    record = {
        "help_s": result["--help"], "show_s": result["show"], "python_s": result.pop("python"),
        "worst_s": max(taken for line, taken in result.items() if line not in (PLAN, NEW)),
        "plan_ratio": round(result[NEW] / result[IMPORTS], 1),
        "artifacts": args.artifacts, "runs": args.runs,
        "seconds": result, "heavy": heavy,
    }  # fmt: skip
    if args.json:
        print(json.dumps(record, indent=2))
        return
    for line, taken in result.items():
        print(f"{taken:.3f}  {line:45} {' '.join(heavy.get(line, ()))}")
    print(
        "  ".join(
            f"{key} {record[key]}"
            for key in ("python_s", "help_s", "show_s", "worst_s", "plan_ratio", "artifacts", "runs")
        )
    )


if __name__ == "__main__":
    main()
