"""`adpa eval` by tasks of lm-evaluation-harness, beside what the harness itself finds, and what it refuses."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from adpa_cli.cli.main import main
from adpa_cli.engine import lm_eval_model
from adpa_cli.errors import AdpaError
from adpa_cli.hub.lm_tasks import harness
from adpa_cli.lab import BASES
from adpa_cli.store.store import Store
from support import fake_hub
from support.cli_samples import Cli
from support.lm_eval_tasks import CHOICES, ROLLED, SUBJECTS, write_leaderboard, write_questions, write_task

BATCH = 4
"""Of the stage, unless said."""


@pytest.fixture(autouse=True)
def rows_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the datasets library makes of rows stays in the folder of the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def model(cli: Cli, tmp_path: Path) -> str:
    """A base model without a chat template in the working directory."""
    shutil.copytree(BASES / "student", tmp_path / "m")
    return "./m"


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_leaderboard(tmp_path / "tasks")


def kept(ref: str) -> dict[str, Any]:
    """The metrics of an artifact in the store of the working directory."""
    return dict(Store.find(Path("adpa-store")).resolve(ref).metrics)


def values(ref: str) -> dict[str, float]:
    return {name: entry["value"] for name, entry in kept(ref)["scores"].items()}


def harness_finds(folder: Path, tasks: Path, names: list[Any], shots: int | None = None) -> dict[str, Any]:
    """The numbers of the harness's own run in float32, by task."""
    found = harness("evaluator").simple_evaluate(
        model="hf", model_args={"pretrained": str(folder), "dtype": "float32"}, tasks=names, num_fewshot=shots,
        batch_size=BATCH, device="cpu", bootstrap_iters=0,
        task_manager=harness("tasks").TaskManager(include_path=str(tasks), include_defaults=False),
    )  # fmt: skip
    return dict(found["results"])


def test_numbers_are_those_of_lm_eval_on_exported_weights(cli: Cli, tmp_path: Path, tasks: Path) -> None:
    """To the last digit, of tasks and of a group, for a model that was trained here."""
    trained = cli("sft", "--model", "tiny", "--max-steps", "2", "--limit", "32").ref
    assert cli("export", trained, tmp_path / "exported").code == 0
    write_task(tasks, "prose", body=ROLLED)
    names = ["hellaswag", "gsm8k", "mmlu", "prose"]
    words = ("eval", trained, "--tasks", ",".join(names), "--include-path", tasks, "--set", "dtype=float32")
    ran = cli(*words, "--set", "eval.num_fewshot=2")
    theirs = harness_finds(tmp_path / "exported", tasks, names, 2)
    assert values(ran.ref) == {
        "hellaswag.acc": theirs["hellaswag"]["acc,none"],
        "hellaswag.acc_norm": theirs["hellaswag"]["acc_norm,none"],
        "gsm8k.exact_match.strict-match": theirs["gsm8k"]["exact_match,strict-match"],
        "gsm8k.exact_match.flexible-extract": theirs["gsm8k"]["exact_match,flexible-extract"],
        "mmlu.acc": theirs["mmlu"]["acc,none"],
        "prose.word_perplexity": theirs["prose"]["word_perplexity,none"],
        "prose.bits_per_byte": theirs["prose"]["bits_per_byte,none"],
    }
    assert kept(ran.ref)["scores"]["prose.word_perplexity"] == {
        "value": values(ran.ref)["prose.word_perplexity"],
        "n": 6,
    }
    assert kept(ran.ref)["tasks"]["mmlu"] == {"documents": 12, "version": "7", "shots": "2"}
    mmlu = kept(ran.ref)["scores"]["mmlu.acc"]
    assert mmlu["n"] == 12
    assert mmlu["low"] < mmlu["value"] < mmlu["high"]
    assert cli(*words, "--set", "num_fewshot=2").ref == ran.ref
    assert "HELLASWAG.ACC NORM" in ran.err


def test_the_leaderboard_is_six_tasks_with_their_examples(cli: Cli, model: str, tmp_path: Path, tasks: Path) -> None:
    """Each number as the harness finds it with the leaderboard's examples; MMLU is the plain mean of its subjects."""
    ran = cli("eval", model, "--suite", "open-llm-v1", "--include-path", tasks, "--set", "dtype=float32")
    assert "\ndocuments: " in ran.err
    found = values(ran.ref)
    shots = {"arc_challenge": 25, "hellaswag": 10, "truthfulqa_mc2": 0, "mmlu": 5, "winogrande": 5, "gsm8k": 5}
    theirs = {
        task: numbers
        for name, count in shots.items()
        for task, numbers in harness_finds(tmp_path / "m", tasks, [name], count).items()
    }
    assert found["arc_challenge"] == theirs["arc_challenge"]["acc_norm,none"]
    assert found["hellaswag"] == theirs["hellaswag"]["acc_norm,none"]
    assert found["truthfulqa_mc2"] == theirs["truthfulqa_mc2"]["acc,none"]
    assert found["winogrande"] == theirs["winogrande"]["acc,none"]
    assert found["gsm8k"] == theirs["gsm8k"]["exact_match,strict-match"]
    subjects = [theirs[f"mmlu_{subject}"]["acc,none"] for subject in SUBJECTS]
    assert found["mmlu"] == pytest.approx(sum(subjects) / 2)
    assert found["mmlu_weighted"] == pytest.approx((8 * subjects[0] + 4 * subjects[1]) / 12)
    assert found["mean_of_six"] == pytest.approx(sum(found[name] for name in shots) / 6)
    assert "mmlu has 2 subjects here" in ran.err
    assert {name: each["shots"] for name, each in kept(ran.ref)["tasks"].items()} == {
        name: str(count) for name, count in shots.items()
    }
    rows = json.loads((Path("adpa-store") / ran.ref / "scores.json").read_text())["rows"]
    for metric in ("mean_of_six", "mmlu", "mmlu_weighted"):
        assert sum(rows[metric].values()) / len(rows[metric]) == pytest.approx(found[metric])


def test_a_kill_loses_no_finished_task(cli: Cli, model: str, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked after a kill was not answered before, in whatever order; the numbers are those of one pass."""
    words = ("eval", model, "--tasks", "arc_challenge,winogrande,hellaswag", "--include-path", tasks)
    asked: list[str] = []
    own = lm_eval_model.measured

    def cut_off(model: Any, task: Any, *rest: Any, **more: Any) -> Any:
        if len(asked) == 2:
            raise AdpaError("killed", "again")
        asked.append(task.task_name)
        return own(model, task, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(lm_eval_model, "measured", cut_off)
        assert cli(*words).code == 1
    again: list[str] = []

    def counted(model: Any, task: Any, *rest: Any, **more: Any) -> Any:
        again.append(task.task_name)
        return own(model, task, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(lm_eval_model, "measured", counted)
        ran = cli("eval", model, "--tasks", "hellaswag,winogrande,arc_challenge", "--include-path", tasks)
    assert (asked, again) == (["arc_challenge", "winogrande"], ["hellaswag"])
    other = cli(*words, "--store", "other-store")
    files = [Path(store) / ran.ref / "scores.json" for store in ("adpa-store", "other-store")]
    assert other.ref == ran.ref
    assert files[0].read_bytes() == files[1].read_bytes()


def test_hashed_files_have_no_paths_and_the_id_follows_the_content(
    cli: Cli, model: str, tmp_path: Path, tasks: Path
) -> None:
    first = cli("eval", model, "--tasks", "hellaswag", "--include-path", tasks)
    for name in ("results.json", "scores.json"):
        assert str(tmp_path) not in (Path("adpa-store") / first.ref / name).read_text()
    manifest = Store.find(Path("adpa-store")).resolve(first.ref)
    assert str(tmp_path) not in json.dumps([manifest.spec, manifest.metrics, manifest.sources, manifest.inputs])
    assert manifest.spec["harness"] == importlib.metadata.version("lm_eval")
    chat = cli("eval", model, "--tasks", "hellaswag", "--include-path", tasks, "--set", "eval.chat=true", "-n")
    assert chat.code == 0
    assert first.ref not in chat.out
    write_questions(tasks / "hellaswag.jsonl", 6, "other rows")
    assert cli("eval", model, "--tasks", "hellaswag", "--include-path", tasks).ref != first.ref


def test_what_cannot_be_measured_is_named(cli: Cli, model: str, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("eval", model, "--include-path", tasks)
    assert "name them: --tasks" in cli.refused(2, *words, "--suite", "lm-eval")
    assert "--tasks cannot be combined with --suite open-llm-v1, which has tasks of its own" in cli.refused(
        2, *words, "--suite", "open-llm-v1", "--tasks", "hellaswag"
    )
    assert "--tasks hellaswag has no effect: the suite accuracy does not read it" in cli.refused(
        2, *words, "--suite", "accuracy", "--tasks", "hellaswag"
    )
    assert "a.json holds answers; benchmark tasks need a model" in cli.refused(
        2, "eval", "a.json", "--tasks", "hellaswag"
    )
    assert "--data x has no effect: the suite lm-eval does not read it" in cli.refused(
        2, *words, "--tasks", "hellaswag", "--data", "x"
    )
    assert "no such folder" in cli.refused(3, "eval", model, "--tasks", "hellaswag", "--include-path", "./nowhere")
    assert "has no effect" in cli.refused(2, *words, "--suite", "open-llm-v1", "--set", "num_fewshot=1")
    said = cli.refused(1, *words, "--tasks", "gsm8k", "--set", "eval.max_length=8")
    assert "the task gsm8k cannot be measured" in said
    (tasks / "hellaswag.jsonl").unlink()
    assert "hellaswag needs files that are not on this machine" in cli.refused(1, *words, "--tasks", "hellaswag")
    said = cli.refused(3, "eval", model, "--tasks", "hellaswagg")
    assert "lm-evaluation-harness has no task called 'hellaswagg'" in said
    assert "did you mean hellaswag" in said

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert "pip install lm_eval, which the extra eval brings" in cli.refused(1, *words, "--tasks", "winogrande")


@pytest.fixture
def hub(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.Hub]:
    """A hub with a data set of two configurations, which a task of the folder `quiz` reads the second of."""
    folder = tmp_path / "served"
    for config in ("easy", "hard"):
        (folder / config).mkdir(parents=True)
        for split, count in (("validation", 5), ("train", 20)):
            path = write_questions(tmp_path / f"{split}.jsonl", count, f"{config} {split}")
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            pq.write_table(pa.Table.from_pylist(rows), folder / config / f"{split}-00000-of-00001.parquet")
    listed = "".join(f"- config_name: {c}\n  data_files:\n  - split: validation\n    path: {c}/validation-*\n"
                     f"  - split: train\n    path: {c}/train-*\n" for c in ("easy", "hard"))  # fmt: skip
    (folder / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    (tmp_path / "quiz").mkdir()
    head = (
        "task: quiz\ndataset_path: org/quiz\ndataset_name: hard\nvalidation_split: validation\ntraining_split: train\n"
    )
    (tmp_path / "quiz" / "quiz.yaml").write_text(head + CHOICES.lstrip() + "metadata: {version: 1}\n")
    with fake_hub.serve() as served:
        served.add("datasets/org/quiz", folder)
        fake_hub.use(served, tmp_path / "cache", monkeypatch)
        yield served


def test_what_was_fetched_needs_no_network(
    cli: Cli, model: str, tmp_path: Path, hub: fake_hub.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the configuration that the task reads is fetched; then the hub may be gone."""
    words = ("eval", model, "--tasks", "quiz", "--include-path", "quiz", "--set", "eval.num_fewshot=3")
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        said = cli.refused(1, *words, "--store", "empty-store")
        assert "org/quiz" in said
        assert "not on this machine" in said
        assert "adpa plan eval" in said
        assert "--fetch" in said
    fetched = cli("plan", *words, "--fetch")
    assert fetched.code == 0, fetched.err
    assert "Downloaded org/quiz." in fetched.err
    assert [Path(path).parent.name for path in hub.bodies() if path.endswith(".parquet")] == ["hard", "hard"]
    asked = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    ran = cli(*words)
    assert len(hub.asked) == asked
    assert kept(ran.ref)["scores"]["quiz.acc"]["n"] == 5
    sources = Store.find(Path("adpa-store")).resolve(ran.ref).sources.values()
    commit = hub.repos["datasets/org/quiz"].commit
    assert [source["commit"] for source in sources if source["name"] == "org/quiz"] == [commit]
    rows = pq.read_table(tmp_path / "served" / "hard" / "validation-00000-of-00001.parquet").to_pylist()
    local = tmp_path / "local"
    local.mkdir()
    write_task(local, "quiz", 5)
    (local / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shots = pq.read_table(tmp_path / "served" / "hard" / "train-00000-of-00001.parquet").to_pylist()
    (local / "quiz-shots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shots))
    same = cli("eval", model, "--tasks", "quiz", "--include-path", local, "--set", "eval.num_fewshot=3")
    assert values(same.ref) == values(ran.ref)
    assert main(["show", ran.ref]) == 0
