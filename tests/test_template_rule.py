"""One chat template and one end token hold for a whole plan: the teacher's if it has one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from adpa_cli.data.chat import Encoder
from adpa_cli.data.examples import Message
from adpa_cli.data.templates import ZEPHYR, Template
from adpa_cli.estimate.cost import Clock
from adpa_cli.families import ready_pairs
from adpa_cli.lab import BASES
from adpa_cli.planning.distill_builder import Distill, plan_distill
from adpa_cli.planning.planner import Plan
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import UserSettings
from adpa_cli.stages import Node
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline
from support.fake_hub import Hub, serve, use
from support.tiny_models import tiny_tokenizer

OWN = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FEW = ("--max-steps", 1, "--limit", 8, "--set", "max_length=128", "--no-eval")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.find(tmp_path / "adpa-store", create=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve() as served:
        use(served, tmp_path / "hf", monkeypatch)
        yield served


def aligned(folder: Path) -> Path:
    """A model with a template and an end token that no family has."""
    shutil.copytree(BASES / "teacher", folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "<|end|>", "chat_template": OWN}))
    return folder


def templates(plan: Plan) -> set[Template]:
    """What all stages of a plan are trained, answered and measured with."""

    def below(node: Node) -> Iterator[Node]:
        yield node
        for _, item in node.flat_inputs():
            if isinstance(item, Node):
                yield from below(item)

    return {Template(node.spec.template, node.spec.end) for top in (*plan.targets, *plan.evals) for node in below(top)}


@pytest.mark.parametrize(
    ("student", "base", "pair", "names"),
    [
        (
            "llama-3.2-1b", "meta-llama/Llama-3.2-1B", "tulu-3-8b",
            ("allenai/Llama-3.1-Tulu-3-8B-DPO", "allenai/Llama-3.1-Tulu-3-8B-SFT"),
        ),
        (
            "danube2-1.8b", "h2oai/h2o-danube2-1.8b-base", "zephyr-7b",
            ("alignment-handbook/zephyr-7b-dpo-full", "alignment-handbook/zephyr-7b-sft-full"),
        ),
    ],
)  # fmt: skip
def test_a_ready_pair_gives_its_template_and_the_student_is_fine_tuned_with_it(
    hub: Hub, store: Store, tmp_path: Path, student: str, base: str, pair: str, names: tuple[str, str]
) -> None:
    hub.add(base, BASES / "student")
    for name in names:
        hub.add(name, aligned(tmp_path / name.rpartition("/")[2]))
    asked = Distill("adpa+", student, teacher=pair, data=("tiny-pairs",), sft_data=("tiny-sft",))
    plan = plan_distill(Names(store), UserSettings(), asked)
    assert plan.template == Template(OWN, "<|end|>")
    assert templates(plan) == {plan.template}
    roles = [node.role for node in plan.nodes(store)]
    assert roles[:2] == ["student", "signal"]
    assert "aligned teacher" not in roles


def distill(store: Store, student: Path | str, teacher: Path | str, *sft_data: str, method: str = "dckd") -> Plan:
    asked = Distill(method, str(student), teacher=str(teacher), data=("tiny-pairs",), sft_data=sft_data)
    return plan_distill(Names(store), UserSettings(), asked)


def test_a_base_model_of_the_users_is_fine_tuned_first_with_the_teachers_template(
    hub: Hub, store: Store, tmp_path: Path
) -> None:
    teacher = aligned(tmp_path / "teacher")
    hub.add("org/base", BASES / "student")
    for student in (BASES / "student", "org/base"):
        plan = distill(store, student, teacher, "tiny-sft")
        assert templates(plan) == {Template(OWN, "<|end|>")}
        first = plan.nodes(store)[0]
        assert (first.stage, first.role) == ("sft", "student")
        assert plan.targets[0].inputs["model"] == first


def test_the_checkpoints_of_a_foreign_base_carry_the_teachers_template(
    cli: Cli, tmp_path: Path, pipeline: Pipeline
) -> None:
    teacher = aligned(tmp_path / "teacher")
    base = shutil.copytree(BASES / "student", tmp_path / "base")
    words = ("distill", "--method", "dckd", "--data", pipeline.data, "--sft-data", "tiny-sft", *FEW)
    more = ("--set", "sft.max_steps=1", "--set", "sft.limit=8", "--set", "sft.max_length=128")
    made = pipeline.store / cli(*words, *more, "--student", base, "--teacher", teacher).ref
    tokenizer = AutoTokenizer.from_pretrained(made)
    assert (tokenizer.chat_template, tokenizer.eos_token) == (OWN, "<|end|>")
    assert json.loads((made / "generation_config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id


def test_a_base_model_alone_is_refused_with_what_would_do(hub: Hub, cli: Cli, tmp_path: Path) -> None:
    hub.add("meta-llama/Llama-3.2-1B", BASES / "student")
    teacher = aligned(tmp_path / "teacher")
    words = ("distill", "--method", "dckd", "--teacher", teacher, "--data", "tiny-pairs", "--student")
    said = cli.refused(2, *words, "meta-llama/Llama-3.2-1B")
    assert "is a base model: it has no chat template and must be fine-tuned first" in said
    assert "try: --student llama-3.2-1b, which is fine-tuned first\n" in said
    assert " or: --student meta-llama/Llama-3.2-1B --sft-data DIALOGUES" in said
    said = cli.refused(2, *words, BASES / "student")
    assert f"try: --student {BASES / 'student'} --sft-data DIALOGUES, which fine-tunes it first" in said


def test_no_stage_runs_with_an_empty_template(hub: Hub, cli: Cli) -> None:
    for name in ("allenai/Llama-3.1-Tulu-3-8B-DPO", "allenai/Llama-3.1-Tulu-3-8B-SFT", "org/base"):
        hub.add(name, BASES / "teacher")
    for words in (["eval", "tulu-3-8b"], ["eval", "org/base"], ["rollout", "--student", "org/base"]):
        said = cli.refused(2, *words, "--data", "tiny-pairs")
        assert "has no chat template: it is a base model" in said


def test_a_teacher_that_does_not_say_what_it_was_aligned_from(hub: Hub, cli: Cli, tmp_path: Path) -> None:
    folder = aligned(tmp_path / "teacher")
    hub.add("org/dpo", folder, base="org/sft")
    words = ("distill", "--method", "adpa+", "--student", "tiny", "--data", "tiny-pairs", "--teacher")
    assert cli.refused(2, *words, "org/dpo") == (
        "adpa+ needs the model that the teacher was aligned from, and the hub model org/dpo does not name it\n"
        "try: … --reference org/sft     (its card names this one; check it)\n"
        " or: --method adpa-noref, which does not need it\n"
    )
    said = cli.refused(2, *words, folder)
    assert "and teacher does not name it\ntry: … --reference MODEL\n" in said
    said = cli.refused(2, "eval", "org/dpo", "--suite", "agreement", "--data", "tiny-pairs")
    assert "does not name\ntry: … --reference org/sft     (its card names this one; check it)\n" in said


def test_a_ready_pair_is_measured_against_its_own_reference(
    hub: Hub, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clock, "product", lambda *_: 232e9)  # a busy machine plans other seconds each time
    pair = ready_pairs()["tulu-3-8b"]
    hub.add(pair.aligned, aligned(tmp_path / "dpo"))
    other = aligned(tmp_path / "sft")
    (other / "generation_config.json").write_text("{}")
    hub.add(pair.reference, other)
    words = ("eval", "tulu-3-8b", "--suite", "agreement", "--data", "tiny-pairs", "-n", "--set", "max_length=128")
    (row,) = [row for row in cli(*words).rows if "agreement" in "".join(row)]
    assert row == cli(*words, "--reference", pair.reference).rows[0]
    assert f"reference {pair.reference}" in "".join(row)


def test_a_template_writes_the_plans_end_token_and_not_the_tokenizers_own() -> None:
    tokenizer: Any = tiny_tokenizer()
    assert tokenizer.named["eos_token"] == "</s>"
    encoder = Encoder(tokenizer, Template(ZEPHYR.text, "<end>"))
    text = encoder.render([Message("user", "w1"), Message("assistant", "w2")], ask=False)
    assert "<end>" in text
    assert "</s>" not in text
