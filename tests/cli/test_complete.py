"""What the shell offers after TAB: through Typer's protocol for bash, zsh and fish, and in each of these shells."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.cli.console import complete
from adpa_cli.cli.console.app import program
from adpa_cli.cli.main import main
from adpa_cli.store.store import Store
from support.cli_samples import Cli
from support.shells import Shell
from support.store_samples import new_store, place, recipe

Offer = Callable[[str], list[str]]
METHOD = ["adpa", "adpa+", "adpa-noref"]


@pytest.fixture
def offered(cli: Cli, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Offer:
    """What bash is offered for the last word of a line."""

    def ask(line: str) -> list[str]:
        words = line.split(" ")
        monkeypatch.setenv("COMP_WORDS", "\n".join(words))
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        monkeypatch.setenv("_ADPA_COMPLETE", "complete_bash")
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main([])
        seen = capfd.readouterr()
        assert (end.value.code, seen.err) == (0, "")
        return seen.out.split()

    return ask


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with an artifact of two stages, each with a tag."""
    store = new_store(tmp_path)
    for n, stage in enumerate(("sft", "cache-teacher")):
        made = place(store, recipe(stage=stage, n=n), float(n), metrics={"what": "made by a test"})
        store.tag(f"my-{stage}", made.id)
    return store


def test_commands_and_options(offered: Offer) -> None:
    assert offered("adpa di") == ["distill"]
    assert {"sft", "show", "tag"} <= set(offered("adpa "))
    assert offered("adpa distill --meth") == ["--method"]
    assert offered("adpa distill --method adpa --meth") == []
    assert {"--json", "--store"} <= set(offered("adpa show --"))


@pytest.mark.parametrize("around", ["adpa {}", "adpa --json -q {}", "adpa --store elsewhere {}", "adpa -v {} -q"])
def test_values_wherever_the_global_options_stand(offered: Offer, around: str) -> None:
    assert offered(around.format("distill") + " --method adpa") == METHOD


def test_models_and_teachers_are_aliases_tags_and_ids(offered: Offer, store: Store) -> None:
    sft, cache = (next((store.root / stage).iterdir()).name for stage in ("sft", "cache-teacher"))
    assert offered("adpa distill --student t") == ["tiny", "tiny-teacher"]
    assert offered("adpa distill --teacher tul") == ["tulu-3-8b"]
    assert offered("adpa distill --student tul") == []
    assert offered("adpa distill --student my") == ["my-sft"]
    assert offered("adpa distill --student sf") == ["sft@latest", f"sft/{sft}"]
    assert offered(f"adpa distill --student {sft[:5]}") == [sft]
    assert offered("adpa distill --cache my") == ["my-cache-teacher"]
    assert offered("adpa distill --cache ca") == ["cache-teacher@latest", f"cache-teacher/{cache}"]
    assert offered("adpa show my") == ["my-cache-teacher", "my-sft"]
    assert offered("adpa show my-sft my-c") == ["my-cache-teacher"]
    newest = {"sft@latest", "cache-teacher@latest"}
    assert set(offered("adpa path ")) == {*newest, "my-sft", "my-cache-teacher", f"sft/{sft}", f"cache-teacher/{cache}"}
    assert offered("adpa tag my-s") == ["my-sft"]
    assert offered(f"adpa tag new {sft[:5]}") == [sft]


def test_the_store_is_the_one_that_the_line_names(offered: Offer, store: Store, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    store.root.rename(moved)
    assert offered("adpa show my") == []
    assert offered(f"adpa show --store {moved} my") == ["my-cache-teacher", "my-sft"]
    assert offered(f"adpa --store {moved} show my") == ["my-cache-teacher", "my-sft"]
    assert offered(f"adpa --store={moved} show my") == ["my-cache-teacher", "my-sft"]


def test_damaged_manifests_are_offered_and_nothing_is_created(offered: Offer, store: Store, tmp_path: Path) -> None:
    for manifest in store.root.rglob("manifest.json"):
        manifest.write_text("damaged")
    before = sorted(tmp_path.rglob("*"))
    assert len(offered("adpa show ")) == 6
    assert sorted(tmp_path.rglob("*")) == before
    (store.root / "adpa.json").write_text("damaged")
    assert offered("adpa show ") == []


def test_keys_of_the_method_on_the_line(offered: Offer) -> None:
    line = "adpa distill --method {} --set "
    assert offered(line.format("adpa") + "gam") == ["gamma=", "gamma=1.5"]
    assert offered(line.format("adpa+") + "alp") == ["alpha=", "alpha=0.2"]
    assert offered(line.format("simpo") + "missing") == []
    assert offered(line.format("nosuch") + "gamma") == []
    assert {"gamma=1.5", "batch_size=128", "lr=1e-05"} <= set(offered(line.format("adpa")))
    assert offered("adpa sft --set gam") == []
    assert offered("adpa rollout --set temp") == ["temperature=", "temperature=0.0"]


def test_values_of_a_key(offered: Offer) -> None:
    line = "adpa distill --method adpa --set "
    known = ["kth", "exact"]
    whole = offered(line + "missing_reference=")
    assert whole[0] == "missing_reference=kth"
    assert set(known) <= {value.partition("=")[2] for value in whole}
    assert set(known) <= set(offered(line + "missing_reference ="))  # as bash splits it
    assert offered(line + "missing_reference = k") == ["kth"]
    assert offered(line + "kd_on_eos=f") == ["kd_on_eos=false"]
    assert offered(line + "gamma=2 --lr 1 --meth") == []
    teachers = ["kd_teacher=", "kd_teacher=aligned", "kd_teacher=reference", "kd_teacher=sft-chosen"]
    assert offered("adpa distill --method dckd --set kd_t") == teachers
    assert offered("adpa distill --method seqkd --set states=")[0] == "states=teacher"
    assert offered("adpa distill --states ") == ["student", "chosen", "rejected", "teacher"]


def test_keys_and_values_of_the_runtime(offered: Offer) -> None:
    line = "adpa distill --method adpa --runtime "
    assert {"recompute=false", "liger=auto", "fused=true"} <= set(offered(line))
    assert offered(line + "rec") == ["recompute=", "recompute=false", "recompute=true"]
    assert offered(line + "liger=o") == ["liger=on", "liger=off"]
    assert offered(line + "liger = o") == ["on", "off"]  # as bash splits it
    assert offered("adpa rollout --runtime noise=a") == ["noise=accept"]


def test_keys_of_a_stage(offered: Offer) -> None:
    line = "adpa distill --method adpa+ --student tiny --set "
    assert offered(line + "rollout.temp") == ["rollout.temperature=", "rollout.temperature=0.7"]
    assert "dpo-teacher.beta=0.1" in offered(line + "dpo-teacher.b")
    assert "sft.lr=0.002" in offered(line + "sf")
    assert offered(line + "nosuch.l") == []


def test_a_plan_is_completed_as_the_command_it_plans(offered: Offer) -> None:
    assert offered("adpa plan di") == ["distill"]
    assert offered("adpa plan distill --meth") == ["--method"]
    assert offered("adpa plan distill --method adpa --set gam") == ["gamma=", "gamma=1.5"]


def test_data_suites_and_words(offered: Offer, tmp_path: Path) -> None:
    for name in ("pairs.jsonl", "pairs.txt", "more.parquet"):
        (tmp_path / name).touch()
    assert offered("adpa distill --data ti") == ["tiny-sft", "tiny-pairs"]
    assert offered("adpa distill --data pa") == ["pairs.jsonl"]
    assert offered("adpa data mo") == ["more.parquet"]
    assert offered("adpa distill --data ./pa") == []  # the shell completes paths
    assert offered("adpa distill --student ./pa") == []
    assert offered("adpa eval x --suite re") == ["reward-model"]
    assert offered("adpa distill --select be") == ["best"]
    assert offered("adpa methods adpa") == METHOD


def test_every_choice_is_taken_and_every_metavar_that_is_completed_is_that_of_an_option(cli: Cli) -> None:
    group: Any = program()
    metavars = {param.metavar for command in group.commands.values() for param in command.params}
    assert set(complete.BY_METAVAR) <= metavars
    answers = {
        param.name: param.shell_complete(None, "")
        for command in group.commands.values()
        for param in command.params
        if param.name in ("suite", "split", "select", "keep", "gpus")
    }
    words = {name: [item.value for item in found] for name, found in answers.items()}
    said = cli.refused(2, "eval", "tiny", "--suite", "nosuch")
    assert all(word in said for word in words["suite"])
    assert "best" in words["select"]


@pytest.mark.parametrize(
    ("shell", "expected"),
    [
        ("zsh", '--select":"Which checkpoint becomes the result"'),
        ("fish", "--select\tWhich checkpoint becomes the result"),
    ],
)
def test_zsh_and_fish_show_what_an_option_means(
    shell: str, expected: str, cli: Cli, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_ADPA_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "adpa distill --sel")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    with pytest.raises(SystemExit):
        main([])
    assert expected in capfd.readouterr().out.replace("\\", "")


@pytest.fixture
def home(tmp_path: Path, store: Store, request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment of a user of a shell who has typed `adpa --install-completion` there."""
    name = str(request.param)
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    program = tmp_path / "bin" / "adpa"
    for folder in (program.parent, tmp_path / "home"):
        folder.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m adpa_cli "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "PATH": path}
    environment.pop("ZDOTDIR", None), environment.pop("XDG_CONFIG_HOME", None)
    words = [name, "-c", "adpa --install-completion; true"]  # a shell that ends with a command becomes that command
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert f"{name} completion installed" in done.stdout, done
    return environment


@pytest.mark.parametrize(("home", "name"), [("bash", "bash"), ("zsh", "zsh")], indirect=["home"])
def test_a_real_shell_completes_what_is_typed(home: dict[str, str], name: str, tmp_path: Path, store: Store) -> None:
    sft = next((store.root / "sft").iterdir()).name
    student = "adpa distill --method dckd --student tiny"
    lines = {
        "adpa di": "adpa distill ",  # the first Tab of a new shell
        "adpa distill --meth": "adpa distill --method ",
        "adpa distill --select be": "adpa distill --select best ",
        f"adpa show {sft[:5]}": f"adpa show {sft} ",
        "adpa show sft@": "adpa show sft@latest ",
        "adpa --store adpa-store path my-s": "adpa --store adpa-store path my-sft ",
        "adpa distill --data tiny-p": "adpa distill --data tiny-pairs ",
        f"{student} --set alp": f"{student} --set alpha=",
        f"{student} --set alpha=": f"{student} --set alpha=5.0 ",
    }
    with contextlib.closing(Shell(name, tmp_path, home)) as shell:
        assert {line: shell.completed(line) for line in lines} == lines


@pytest.mark.parametrize("home", ["fish"], indirect=True)
def test_a_real_fish_completes_with_summaries(home: dict[str, str], tmp_path: Path, store: Store) -> None:
    sft = next((store.root / "sft").iterdir()).name
    lines = ("adpa cache-te", "adpa distill --student my-", "adpa distill --student sft",
             "adpa distill --method dckd --student tiny --set alpha=")  # fmt: skip
    script = "\n".join(f'complete -C "{line}"; echo' for line in lines)
    done = subprocess.run(["fish", "-c", script], env=home, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    blocks = [block.splitlines() for block in done.stdout.split("\n\n")]
    assert blocks[0][0].startswith("cache-teacher\tStore the teacher’s top-k"), done
    assert len(blocks[0]) == 1, "a help takes one line"
    assert blocks[1:4] == [[f"my-sft\tsft/{sft}: made by a test"], [f"sft/{sft}\tmade by a test",
        "sft@latest\tthe newest of 1"], ["alpha=5.0"]]  # fmt: skip


def test_bash_splits_a_word_at_its_at_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_WORDS", "\n".join(["adpa", "show", "sft", "@", "latest", "dpo-teacher", "@", "la", "-q"]))
    monkeypatch.setenv("COMP_CWORD", "7")
    complete.join_words()
    assert os.environ["COMP_WORDS"].split("\n") == ["adpa", "show", "sft@latest", "dpo-teacher@la", "-q"]
    assert os.environ["COMP_CWORD"] == "3"
