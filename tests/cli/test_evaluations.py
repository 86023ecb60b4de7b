"""What evaluations share, what they may be compared by, and the table that they end with."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.data.answers import answers_of
from adpa_cli.hub import Located
from adpa_cli.hub.externals import pairs_of
from adpa_cli.lab import world
from adpa_cli.report.evaluation import _p_words
from adpa_cli.statistics import bootstrap, sign_flip_p
from adpa_cli.store.store import Store
from adpa_cli.suites import EvalSpec, Figures, repeated_share
from adpa_cli.suites.agreement import with_lengths
from support.cli_samples import Cli, Pipeline, by_metric, write_rows

FEW = ("--max-steps", 2, "--batch-size", 10, "--limit", 40)
TINY = ("--suite", "tiny", "--set", "rollout.max_new_tokens=12")


def manifest(pipeline: Pipeline, ref: str) -> Any:
    return Store.find(pipeline.store).resolve(ref)


def planned(cli: Cli, *words: object) -> list[str]:
    """What each stage of a plan makes."""
    return [f"{row[2]}: {row[3]}" for row in cli("eval", *words, "-n").rows]


@pytest.fixture
def judges(pipeline: Pipeline, cli: Cli) -> list[str]:
    """Two reward models that differ in one step."""
    words = ("reward-model", "--model", pipeline.made("reference teacher"), "--data", pipeline.data)
    return [cli(*words, *FEW, "--seed", seed).ref for seed in (0, 1)]


def answers_file(path: Path, count: int = 12) -> Path:
    """The chosen answers of the held-out pairs, in AlpacaEval's format."""
    pairs = world.preferences("test")[:count]
    rows = [{"instruction": p["prompt"][-1]["content"], "output": p["chosen"][-1]["content"]} for p in pairs]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_scores_of_two_reward_models_stand_in_two_rows(pipeline: Pipeline, cli: Cli, judges: list[str]) -> None:
    student, start = pipeline.made("distill adpa"), pipeline.made("student")
    words = ("--data", pipeline.data, "--limit", 6)
    one = cli("eval", student, "--reward-model", judges[0], *words).ref
    other = cli("eval", start, "--reward-model", judges[1], *words).ref
    rows = {line[0]: line[1:] for line in cli("show", one, other).rows}
    rewards = {name: cells for name, cells in rows.items() if name.startswith("mean-reward")}
    assert len(rewards) == 2
    assert all("" in cells for cells in rewards.values())
    assert not any("mean-reward" in name for name in rows if name.startswith("more"))
    alike = cli("eval", start, "--reward-model", judges[0], *words).ref
    names = [line[0] for line in cli("show", one, alike).rows]
    assert any(name.startswith("difference from the first: mean-reward") for name in names)


def test_two_files_of_one_name_do_not_share_a_row(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    refs = []
    for n in (0, 1):
        (tmp_path / str(n) / "pairs").mkdir(parents=True)
        for split in ("train", "test"):
            write_rows(tmp_path / str(n) / "pairs" / f"{split}.jsonl", world.preferences(split)[n : n + 6])
        words = ("--data", f"./{n}/pairs", "--suite", "accuracy")
        refs.append(cli("eval", pipeline.made("distill adpa" if n else "student"), *words).ref)
    rows = [line for line in cli("show", *refs).rows if "reward-accuracy" in line[0]]
    assert len(rows) == 2
    assert all(line.count("") == 1 for line in rows)


@pytest.mark.parametrize(
    "more", [("--limit", 7), ("--set", "rollout.temperature=0"), ("--set", "rollout.max_new_tokens=7")], ids=str
)
def test_what_was_measured_otherwise_is_not_compared(pipeline: Pipeline, cli: Cli, more: tuple[object, ...]) -> None:
    student, start = pipeline.made("distill adpa"), pipeline.made("student")
    words = ("--data", pipeline.data, "--suite", "tiny")
    one = cli("eval", student, *words).ref
    other = cli("eval", start, *words, *more).ref
    assert not any(line[0].startswith("difference from") for line in cli("show", one, other).rows)


def test_answers_and_their_rewards_are_made_once(pipeline: Pipeline, cli: Cli) -> None:
    student, start = pipeline.made("distill adpa"), pipeline.made("student")
    other = pipeline.made("distill dckd")
    plan = planned(cli, student, other, "--against", start, "--data", pipeline.data, *TINY)
    assert [sum(line.startswith(role) for line in plan) for role in ("rollouts", "rewards")] == [3, 3]
    assert sum("accuracy of" in line for line in plan) == 2
    cli("eval", student, "--against", start, "--data", pipeline.data, *TINY)
    later = cli("eval", other, "--against", start, "--data", pipeline.data, *TINY, "-n").rows
    assert sum(row[1] == "build" and row[2] in ("rollouts", "rewards") for row in later) == 2


def test_given_answers_are_rewarded_once_beside_models_of_any_template(
    pipeline: Pipeline, cli: Cli, tmp_path: Path, judges: list[str]
) -> None:
    answers_file(tmp_path / "gold.json")
    words = ("--reward-model", judges[0], "--set", "rewards.dtype=float32", "--set", "rewards.block_tokens=512", "-n")
    alone = [row[4] for row in cli("eval", "gold.json", *words).rows if row[2] == "rewards"]
    model = pipeline.made("student")
    beside = cli("eval", model, "gold.json", "--data", pipeline.data, *words).rows
    assert [row[4] for row in beside if row[2] == "rewards" and "gold.json" in row[3]] == alone


def test_settings_of_the_answers_reach_them(pipeline: Pipeline, cli: Cli) -> None:
    words = (pipeline.made("student"), "--data", pipeline.data, "--suite", "tiny")
    usual = manifest(pipeline, cli("eval", *words).ref)
    greedy = manifest(pipeline, cli("eval", *words, "--set", "rollout.temperature=0").ref)
    assert greedy.id != usual.id
    rollout = manifest(pipeline, str(greedy.inputs["rollouts"]).removeprefix("artifact:"))
    assert rollout.spec["temperature"] == 0
    assert cli("eval", *words, "--set", "eval.rollout.temperature=0").ref == greedy.ref
    short = cli("eval", *words, "--set", "rollout.max_new_tokens=3", "--json").out
    assert by_metric(json.loads(short))["cut_share"]["value"] > 0.5


def test_what_has_no_effect_is_refused(pipeline: Pipeline, cli: Cli) -> None:
    student = pipeline.made("student")
    words = ("eval", student, "--data", pipeline.data)
    for setting in ("rollout.temperature=0", "eval.rollout.max_new_tokens=4", "rewards.dtype=float16"):
        said = cli.refused(2, *words, "--suite", "accuracy", "--set", setting)
        assert f"--set {setting} has no effect on this evaluation" in said
    rollout = cli("rollout", "--student", student, "--data", pipeline.data, "--split", "test").ref
    said = cli.refused(2, "eval", rollout, "--suite", "tiny", "--set", "dtype=float16")
    assert "--set dtype=float16 has no effect" in said
    assert "no such setting" in cli.refused(2, *words, "--set", "eval.rollout.heat=1")


def test_answers_that_are_there_are_measured(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    """A file, a rollout and a model; the opponent may be any of them too. Rewards are those of the world's rules."""
    path = answers_file(tmp_path / "gold.json")
    expected = [world.reward(answer.prompt[-1].content, answer.text) for answer in answers_of(path)]
    student = pipeline.made("student")
    ran = cli("eval", "gold.json", "--against", student, *TINY, "--json")
    assert ran.code == 0, ran.err
    line = json.loads(ran.out)
    assert by_metric(line)["mean_reward"]["value"] == pytest.approx(sum(expected) / 12)
    assert by_metric(line)["win_rate"]["against"] == student
    assert line["model"] == "gold.json"
    opponent = manifest(pipeline, str(manifest(pipeline, line["ref"]).inputs["against"]).removeprefix("artifact:"))
    both = json.loads(cli("eval", opponent.ref, "--against", "./gold.json", "--suite", "tiny", "--json").out)
    assert by_metric(both)["win_rate"]["value"] == pytest.approx(1 - by_metric(line)["win_rate"]["value"])
    assert by_metric(both)["win_rate"]["against"] == "gold.json"
    by_model = json.loads(cli("eval", student, "--against", "gold.json", *TINY, "--json").out)
    assert by_metric(by_model)["win_rate"]["value"] == by_metric(both)["win_rate"]["value"]


def test_answers_to_other_prompts_are_counted(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    answers_file(tmp_path / "gold.json")
    gold = json.loads(answers_file(tmp_path / "others.json", 13).read_text())
    (tmp_path / "others.json").write_text(json.dumps(gold[12:]))
    said = cli.refused(1, "eval", "gold.json", "--against", "others.json", "--suite", "tiny")
    assert "others.json has no answer to any of the 12 prompts that gold.json answers" in said
    answers_file(tmp_path / "few.json", 5)
    ran = cli("eval", "gold.json", "--against", "few.json", "--suite", "tiny")
    assert manifest(pipeline, ran.ref).metrics["scores"]["win_rate"]["n"] == 5
    assert (
        "few.json answers 5 of the 12 prompts" in ran.err or "few.json answers 5 of the 12" in cli("show", ran.ref).out
    )
    said = cli.refused(2, "eval", "gold.json", "--suite", "accuracy")
    assert "gold.json holds answers, and the suite accuracy measures models only" in said


def test_given_answers_leave_no_choice_of_prompts(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    answers_file(tmp_path / "gold.json")
    said = cli.refused(2, "eval", "gold.json", "--suite", "tiny", "--data", pipeline.data)
    assert "has no effect: given answers are measured on their own prompts" in said
    said = cli.refused(2, "eval", "gold.json", "--suite", "tiny", "--limit", "4")
    assert "--limit 4 has no effect" in said
    both = ("eval", "gold.json", pipeline.made("student"), "--suite", "tiny", "--data", pipeline.data, "--limit", "4")
    assert cli(*both, "-n").code == 0


def test_a_context_shorter_than_the_length_of_pairs_is_enough_for_answers(
    pipeline: Pipeline, cli: Cli, tmp_path: Path
) -> None:
    """Only pairs have a use for the `max_length` of an evaluation, which may not be set for answers."""
    assert cli("export", pipeline.made("student"), tmp_path / "short").code == 0
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 128}))
    write_rows(tmp_path / "asked.jsonl", [{"prompt": "one"}, {"prompt": "two"}])
    words = ("eval", "./short", "--data", "asked.jsonl", *TINY, "--set", "rollout.max_length=128", "-n")
    ran = cli(*words)
    assert ran.code == 0, ran.err


def test_a_file_that_answers_twice_is_refused_before_a_model_answers(
    pipeline: Pipeline, cli: Cli, tmp_path: Path
) -> None:
    rows = json.loads(answers_file(tmp_path / "gold.json").read_text())
    (tmp_path / "twice.json").write_text(json.dumps([*rows, rows[0]]))
    words = ("eval", pipeline.made("student"), "--data", pipeline.data, *TINY)
    for more in (("--against", "twice.json"), ("twice.json",)):
        said = cli.refused(1, *words, *more, "-n")
        assert "twice.json row 13 answers the same prompt as row 1" in said


def test_the_option_is_named_as_it_was_typed(pipeline: Pipeline, cli: Cli) -> None:
    for words, option in ((("nobody",), "REF"), ((pipeline.made("student"), "--against", "nobody"), "--against")):
        assert cli.refused(3, "eval", *words, "--suite", "tiny").startswith(f"{option} nobody: ")


def test_prompts_need_no_answers(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    """`prompt`, `instruction` and FastChat's `turns`; none is held out, and reward accuracy is not measured on them."""
    texts = [pair["prompt"][-1]["content"] for pair in world.preferences("test")[:5]]
    forms = {"prompt": texts, "instruction": texts, "turns": [[text, "and again?"] for text in texts]}
    refs = set()
    for name, values in forms.items():
        write_rows(tmp_path / f"{name}.jsonl", [{name: value, "output": "unread"} for value in values])
        words = ("eval", pipeline.made("student"), "--data", f"{name}.jsonl", *TINY)
        assert not any("accuracy" in row[3] for row in cli(*words, "-n").rows)
        made = manifest(pipeline, cli(*words).ref)
        assert made.metrics["scores"]["mean_reward"]["n"] == 5
        refs.add(made.metrics["scores"]["mean_reward"]["value"])
    assert len(refs) == 1
    answered = cli(
        "rollout", "--student", pipeline.made("student"), "--data", "turns.jsonl", "--set", "max_new_tokens=4"
    )
    assert manifest(pipeline, answered.ref).metrics["answers"] == 5
    said = cli.refused(1, "distill", "--method", "dpo", "--student", pipeline.made("student"), "--data", "prompt.jsonl")
    assert "do not form preference pairs" in said
    write_rows(tmp_path / "bad.jsonl", [{"turns": "one"}])
    assert "turns are no list of texts" in cli.refused(
        1, "eval", pipeline.made("student"), "--data", "bad.jsonl", "--suite", "tiny"
    )


def test_the_table_compares_with_the_first_model(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    models = [pipeline.made(role) for role in ("student", "reference teacher", "distill adpa")]
    words = ("eval", *models, "--data", pipeline.data, *TINY)
    ran = cli(*words, "--json", "--to", "table.csv")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [line["model"] for line in lines] == models
    assert lines[0]["differences"] == []
    store = Store.find(pipeline.store)
    tables = []
    for line in lines:
        numbers = by_metric(line)
        assert {"mean_reward", "reward_accuracy", "answer_tokens", "cut_share", "repeated_share"} <= set(numbers)
        assert numbers["mean_reward"]["evaluation"] == line["ref"]
        tables.append(json.loads((store.folder(line["ref"]) / "scores.json").read_text())["rows"]["mean_reward"])
    ps = []
    for line, table in zip(lines[1:], tables[1:], strict=True):
        apart = [table[row] - tables[0][row] for row in sorted(table)]
        found, mean = by_metric(line, "differences")["mean_reward"], bootstrap(apart)
        assert (found["value"], found["low"], found["high"]) == (mean["value"], mean["low"], mean["high"])
        assert found["p"] == sign_flip_p(apart)
        ps += [(each["p"], each["p_holm"]) for each in line["differences"]]
    least = min(ps)
    assert least[1] == pytest.approx(min(1.0, len(ps) * least[0])), "the least p is multiplied by the number of tests"
    with (tmp_path / "table.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [float(row["mean_reward"]) for row in written] == [by_metric(line)["mean_reward"]["value"] for line in lines]
    found = by_metric(lines[1], "differences")["mean_reward"]
    assert float(written[1]["mean_reward_difference"]) == found["value"]
    assert float(written[1]["mean_reward_difference_p_holm"]) == found["p_holm"]
    assert (found["model"], found["from"]) == (models[1], models[0])
    for name, begins in (("table.md", "| model | mean reward |"), ("table.tex", "\\begin{tabular}{lrrrrr}")):
        said = cli(*words, "--to", name).err
        assert (tmp_path / name).read_text().startswith(begins)
        assert re.search(rf"difference from {models[0]}, paired by prompt", said)
    assert "--to table.pdf" in cli.refused(2, *words, "--to", "table.pdf")
    assert "the folder nowhere does not exist" in cli.refused(2, *words, "--to", "nowhere/table.md")


def test_numbers_that_are_not_alike_are_marked(pipeline: Pipeline, cli: Cli, tmp_path: Path, judges: list[str]) -> None:
    answers_file(tmp_path / "gold.json")
    ran = cli("eval", pipeline.made("student"), "gold.json", "--data", pipeline.data, *TINY)
    rows = {line.split()[0]: line for line in ran.err.splitlines() if "†" in line}
    assert "gold.json" in rows, "nothing tells how the answers of a file were drawn"
    assert "† measured on other rows" in ran.err
    ran = cli("eval", pipeline.made("student"), "--data", pipeline.data, "--reward-model", judges[0])
    assert f"rewards by {judges[0]}" in ran.err
    assert "†" not in ran.err


def test_two_files_that_answer_the_same_prompts_are_compared(cli: Cli, tmp_path: Path, judges: list[str]) -> None:
    gold = json.loads(answers_file(tmp_path / "gold.json").read_text(encoding="utf-8"))
    worse = [{**row, "output": " ".join(reversed(row["output"].split()))} for row in reversed(gold)]
    (tmp_path / "worse.json").write_text(json.dumps(worse), encoding="utf-8")
    ran = cli("eval", "gold.json", "worse.json", "--reward-model", judges[0], "--json")
    first, second = (json.loads(line) for line in ran.out.splitlines())
    assert first["differences"] == []
    found = by_metric(second, "differences")["mean_reward"]
    means = [by_metric(line)["mean_reward"]["value"] for line in (first, second)]
    assert found["value"] == pytest.approx(means[1] - means[0])
    (tmp_path / "other.json").write_text(json.dumps(worse[1:]), encoding="utf-8")
    *_, last = cli("eval", "gold.json", "other.json", "--reward-model", judges[0], "--json").out.splitlines()
    assert json.loads(last)["differences"] == []


def test_no_p_is_shown_as_0() -> None:
    words = {each: _p_words(each) for each in (1.0, 0.0835, 0.0001, 0.00005)}
    assert list(words.values()) == ["1.0000", "0.0835", "0.0001", "<0.0001"]


def test_a_point_of_a_training_is_measured(pipeline: Pipeline, cli: Cli) -> None:
    words = ("distill", "--method", "sft", "--student", pipeline.made("student"), "--data", pipeline.data, *FEW)
    ref = cli(*words, "--no-eval", "--keep", "all").ref
    step = json.loads(cli("show", ref, "--json").out)["metrics"]["selection"]["points"][0]["step"]
    line = json.loads(cli("eval", f"{ref}@{step}", "--data", pipeline.data, *TINY, "--json").out)
    assert line["model"] == f"{ref}@{step}"


def test_a_reward_model_is_measured_on_pairs(pipeline: Pipeline, cli: Cli, judges: list[str]) -> None:
    words = ("--data", pipeline.data, "--split", "train")
    line = json.loads(cli("eval", judges[0], *words, "--json").out)
    made = manifest(pipeline, line["ref"])
    assert made.spec["suite"] == "agreement"
    rewards_ref = manifest(pipeline, str(made.inputs["rewards"]).removeprefix("artifact:")).ref
    rewards = json.loads((Store.find(pipeline.store).folder(rewards_ref) / "rewards.json").read_text())
    right = [rewards["chosen"][pair] > rewards["rejected"][pair] for pair in rewards["chosen"]]
    assert by_metric(line)["agreement"]["value"] == pytest.approx(sum(right) / len(right))
    assert by_metric(line)["agreement"]["n"] == 40
    pairs = [json.loads(row) for row in (pipeline.data / "train.jsonl").read_text().splitlines()]
    longer = [len(p["chosen"][-1]["content"]) - len(p["rejected"][-1]["content"]) for p in pairs]
    baseline = sum((more > 0) + 0.5 * (more == 0) for more in longer) / 40
    assert by_metric(line)["longer_baseline"]["value"] == pytest.approx(baseline)
    assert by_metric(line)["longer_agreement"]["n"] == sum(more > 0 for more in longer)
    named = cli("eval", "--reward-model", judges[0], "--suite", "agreement", *words).ref
    assert named == line["ref"]
    both = cli("eval", judges[0], "--data", pipeline.data, "--split", "all", "--json").out
    assert by_metric(json.loads(both))["agreement"]["n"] == 52
    said = cli.refused(2, "eval", judges[0], "--data", pipeline.data, "--suite", "tiny")
    assert "is a reward model, which cannot write answers" in said
    assert "--suite agreement" in said
    said = cli.refused(
        2, "eval", pipeline.made("student"), "--data", pipeline.data, "--suite", "tiny", "--split", "all"
    )
    assert "--split has no effect with --suite tiny, which does not measure pairs" in said


def test_the_longer_answer_of_published_pairs_is_mostly_the_chosen_one(shared_data: Path) -> None:
    path = str(shared_data / "alpaca_eval_preferences.jsonl.zst")
    pairs = pairs_of((path,), "all", None, False).items
    always = {pair.id: 1.0 for pair in pairs}
    data = Located("data", "data:0", "pairs", (path,))
    found = with_lengths(
        Figures({}, {"agreement": always, "margin": {}}), {"data": data}, EvalSpec("", "", split="all")
    )
    assert round(found.scores["longer_baseline"]["value"], 3) == 0.882
    counts = [found.scores[f"{side}_agreement"]["n"] for side in ("longer", "shorter")]
    assert len(pairs) - 10 < sum(counts) <= len(pairs), "of a few pairs both answers are as long"


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0.0), ("a b c", 0.0), ("a b c d", 0.0), ("a a a a a a", 2 / 3), ("a b c d a b c d", 0.2)],
)
def test_the_share_of_repeated_runs_of_four_words(text: str, share: float) -> None:
    assert repeated_share(text) == pytest.approx(share)
