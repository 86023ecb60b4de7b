"""Who judges the closing evaluation of a real family, and what an alias of a reward model stands for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from adpa_cli.data.templates import TEMPLATES
from adpa_cli.families import FAMILIES, reserved_words, reward_models
from adpa_cli.planning.distill_builder import Distill, plan_distill
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import UserSettings
from adpa_cli.store.store import Store
from support.cards import add_data, store_beside_card, write_driver
from support.cli_samples import Cli
from support.fake_hub import Hub, serve, use
from support.sparse_models import weights_digest, write_sparse

ROWS = [{"prompt": f"number {n}", "chosen": "yes it is", "rejected": "no"} for n in range(40)]
DIALOGUES = [{"prompt": f"number {n}", "completion": "yes it is"} for n in range(40)]
STUDENT = "smollm2-360m"


@pytest.fixture
def store(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return store_beside_card(tmp_path, monkeypatch, host=200 * 10**9)


@pytest.fixture
def hub(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The models of one family, its data, and no reward model."""
    family = next(family for family in FAMILIES if family.alias == STUDENT)
    with serve() as served:
        use(served, tmp_path / "hf", monkeypatch)
        for name, alias in ((family.student, family.alias), (family.teacher, family.teacher_alias)):
            template = "" if family.template else TEMPLATES["chatml"].text
            folder = write_sparse(tmp_path / alias, alias, template)
            served.add(name, folder, shas={"model.safetensors": weights_digest(folder)})
        add_data(served, tmp_path, ROWS, DIALOGUES)
        yield served


def add_judge(hub: Hub, folder: Path, alias: str) -> None:
    """A reward model of the published shape, under its name on the hub."""
    judge = reward_models()[alias]
    write_sparse(folder / alias, alias, TEMPLATES["chatml"].text, judge.size)
    config = json.loads((folder / alias / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    (folder / alias / "config.json").write_text(json.dumps(config))
    hub.add(judge.name, folder / alias, shas={"model.safetensors": weights_digest(folder / alias)})


def planned(store: Store, **more: str) -> tuple[list[str], tuple[str, ...]]:
    """(what each stage makes, the notes) of a plan."""
    plan = plan_distill(Names(store), UserSettings(), Distill("dckd", STUDENT, **more))
    return [node.what for node in plan.nodes(store)], plan.notes


def test_the_largest_that_fits_judges(hub: Hub, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for alias in reward_models():
        add_judge(hub, tmp_path, alias)
    for card, alias in ((80, "fsfairx"), (8, "skywork-0.6b")):
        write_driver(tmp_path / "bin", monkeypatch, card)
        made, notes = planned(store)
        name = reward_models()[alias].name
        assert sum(what.startswith("of rollout/") and name in what for what in made) == 2, (
            "of the start and the student"
        )
        assert sum(what.startswith("reward-model of ") for what in made) == 2
        assert sum(what.startswith("accuracy of ") for what in made) == 2
        assert any(f"{alias} judges the answers" in note for note in notes)
    made, notes = planned(store, reward_model="fsfairx")
    assert any(reward_models()["fsfairx"].name in what for what in made)
    assert not any(" judges the answers; it is" in note for note in notes)


def test_a_hub_without_reward_models_refuses_no_plan(hub: Hub, store: Store) -> None:
    made, notes = planned(store)
    assert sum(what.startswith("accuracy of ") for what in made) == 2
    assert not any(what.startswith("reward-model of ") for what in made)
    assert any("no reward model judges the answers" in note for note in notes)


def test_an_alias_of_a_reward_model_writes_no_answers(hub: Hub, cli: Cli) -> None:
    assert set(reward_models()) <= reserved_words()
    said = cli.refused(2, "rollout", "--student", "fsfairx", "--data", "dpo-mix-7k")
    assert "fsfairx is a reward model, which cannot write answers" in said
