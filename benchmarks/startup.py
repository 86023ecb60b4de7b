"""How long `adpa --help` and `adpa show` on a store of 500 artifacts take, beside a bare interpreter.

`help_s`, `show_s`, `python_s`: medians of the wall-clock seconds of whole processes, taken in turns.
`heavy`: which of the slow libraries each command loads; none is expected.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from adpa_cli.store.identity import Recipe
from adpa_cli.store.manifest import FILE_NAME, Manifest, utc
from adpa_cli.store.store import Store

HEAVY = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "pyarrow", "pandas", "numpy")
LOADED = (
    "import json, sys; from adpa_cli.cli.main import main; code = main(sys.argv[1:]); "
    f"print(json.dumps([code, [name for name in {HEAVY} if name in sys.modules]]), file=sys.stderr)"
)


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


def seconds(argv: list[str]) -> float:
    """Wall-clock time of one process."""
    start = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def loaded(words: list[str]) -> list[str]:
    """The slow libraries that a command loads."""
    done = subprocess.run([sys.executable, "-c", LOADED, *words], check=True, capture_output=True, text=True)
    code, found = json.loads(done.stderr.splitlines()[-1])
    if code != 0:
        raise SystemExit(f"adpa {' '.join(words)} exited with {code}")
    return list(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=int, default=500)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        show = ["show", "--store", str(fill(Path(folder), args.artifacts))]
        adpa = [sys.executable, "-m", "adpa_cli"]
        commands = {
            "help_s": [*adpa, "--help"], "show_s": [*adpa, *show], "python_s": [sys.executable, "-c", "pass"],
        }  # fmt: skip
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(args.runs):
            for name, argv in commands.items():
                times[name].append(seconds(argv))
        result = {name: round(statistics.median(taken), 3) for name, taken in times.items()}
        record = {
            **result, "artifacts": args.artifacts, "runs": args.runs,
            "heavy": {"help": loaded(["--help"]), "show": loaded(show)},
        }  # fmt: skip
    if args.json:
        print(json.dumps(record, indent=2))
    else:
        for name, value in record.items():
            print(f"{name:12} {value}")


if __name__ == "__main__":
    main()
