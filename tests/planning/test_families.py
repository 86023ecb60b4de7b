"""Aliases and families: what each stands for, what is fine-tuned and what is not, and ids that must not move."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from adpa_cli.data.templates import TEMPLATES, Template
from adpa_cli.errors import UsageError
from adpa_cli.families import FAMILIES, READY_PAIRS, Family, aliases, family_of_base, published, ready_pairs
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.lab import BASES, END, TEMPLATE
from adpa_cli.planning import lineage
from adpa_cli.planning.distill_builder import Distill, plan_distill
from adpa_cli.planning.planner import Plan
from adpa_cli.planning.requests import plan_capture, plan_dpo_teacher, plan_rollout, plan_sft
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import UserSettings
from adpa_cli.stages import Node
from adpa_cli.stages.training import DPO_TEACHER, SFT
from adpa_cli.store.store import Store
from support.fake_hub import Hub, serve, use

PAPER = ("llama-3.2-1b", "danube3-500m", "danube2-1.8b", "llama-2-7b")
TODAY = {
    "smollm2-135m": "smollm2-1.7b", "smollm2-360m": "smollm2-1.7b", "qwen2.5-0.5b": "qwen2.5-7b",
    "qwen2.5-1.5b": "qwen2.5-7b", "qwen3-0.6b": "qwen3-8b", "qwen3-1.7b": "qwen3-8b", "llama-3.2-3b": "llama-3.1-8b",
    "gemma-3-270m": "gemma-3-4b", "gemma-3-1b": "gemma-3-4b", "olmo-2-1b": "olmo-2-7b",
}  # fmt: skip
BY_ALIAS = {family.alias: family for family in FAMILIES}
USER = UserSettings()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve() as served:
        use(served, tmp_path / "hf", monkeypatch)
        (tmp_path / "rows").mkdir()
        (tmp_path / "rows" / "train.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
        for name in ("HuggingFaceH4/deita-10k-v0-sft", "argilla/dpo-mix-7k"):
            served.add(f"datasets/{name}", tmp_path / "rows")
        yield served


@pytest.fixture
def names(tmp_path: Path) -> Names:
    return Names(Store.find(tmp_path / "adpa-store", create=True))


def folder(path: Path, side: str, template: str = "") -> Path:
    """A model that ships with the package, under a chat template or none."""
    shutil.copytree(BASES / side, path)
    if template:
        config = json.loads((path / "tokenizer_config.json").read_text())
        (path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return path


@pytest.fixture
def family(hub: Hub, tmp_path: Path) -> Family:
    """A family of instruct models, on the hub."""
    instruct = BY_ALIAS["smollm2-135m-it"]
    hub.add(instruct.student, folder(tmp_path / "student-it", "student", TEMPLATE))
    hub.add(instruct.teacher, folder(tmp_path / "teacher-it", "teacher", TEMPLATE))
    return instruct


def stages(plan: Plan, names: Names) -> list[str]:
    return [node.stage for node in plan.nodes(names.store)]


def test_the_first_stages_of_the_paper_s_pairs_have_their_ids(hub: Hub, names: Names, tmp_path: Path) -> None:
    """Of stand-ins for the models; another setting, template or way of hashing would move them."""
    student, teacher = (folder(tmp_path / side, side) for side in ("student", "teacher"))
    for alias in PAPER:
        hub.add(BY_ALIAS[alias].student, student)
        hub.add(BY_ALIAS[alias].teacher, teacher)
    made = {}
    for alias in PAPER:
        plan = plan_distill(names, USER, Distill("adpa+", alias, evaluate=False))
        made[alias] = [node.label for node in plan.nodes(names.store) if node.stage == SFT.name]
    llama, zephyr = ["sft/656eec175349", "sft/8908586637b3"], ["sft/38ef0681e0db", "sft/b6f5c3568df0"]
    assert made == {"llama-3.2-1b": llama, **dict.fromkeys(PAPER[1:], zephyr)}


def test_every_student_has_its_teacher_and_the_paper_s_come_first() -> None:
    assert [family.alias for family in FAMILIES[:5]] == ["tiny", *PAPER]
    assert {alias: BY_ALIAS[alias].teacher_alias for alias in TODAY} == TODAY
    for alias, teacher in TODAY.items():
        instruct = BY_ALIAS[f"{alias}-it"]
        assert (instruct.teacher_alias, instruct.instruct, BY_ALIAS[alias].instruct) == (f"{teacher}-it", True, False)
    assert BY_ALIAS["qwen3-0.6b"].student == "Qwen/Qwen3-0.6B-Base"
    assert BY_ALIAS["qwen3-0.6b-it"].student == "Qwen/Qwen3-0.6B"
    assert set(published()) == {*aliases(), *ready_pairs()}, "every alias has its facts, and no other"


def test_models_whose_activations_leave_the_range_of_float16_compute_in_tf32(names: Names, tmp_path: Path) -> None:
    by_dtype: dict[str, set[str]] = {}
    for family in FAMILIES:
        by_dtype.setdefault(family.inference, set()).add(family.alias)
    overflowing = {alias for alias in BY_ALIAS if alias.startswith(("qwen2.5", "gemma-3"))}
    assert by_dtype == {"float32": {"tiny"}, "tf32": overflowing, "float16": BY_ALIAS.keys() - overflowing - {"tiny"}}
    for model_type, dtype in (("qwen2", "tf32"), ("gemma3", "tf32"), ("llama", "float16")):
        model = folder(tmp_path / model_type, "student", TEMPLATE)
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
        (node,) = plan_rollout(names, USER, str(model), ["tiny-pairs"], (), "train").nodes(names.store)
        assert node.spec.dtype == dtype, "of no family"


def test_only_families_of_base_models_without_a_template_name_one() -> None:
    named = {family.alias: family.template for family in FAMILIES if family.template}
    assert set(named.values()) - {"tiny"} <= set(TEMPLATES)
    assert not any(alias.endswith("-it") or alias.startswith("qwen") for alias in named)


def test_the_shape_of_a_model_gives_its_parameters() -> None:
    """Counted by hand: two norms a layer, four in Gemma 3; biases and norms of heads where a family has them."""
    for alias, known in published().items():
        size, body = known.size, 0
        a_layer = 2 * size.hidden * (size.width + size.keys) + 3 * size.hidden * size.inner + 2 * size.hidden
        if alias.startswith("qwen2.5"):
            a_layer += size.width + 2 * size.keys
        elif alias.startswith(("qwen3", "gemma-3")):
            of_head = 256 if alias.startswith("gemma-3") else 128
            a_layer += 2 * of_head + (2 * size.hidden if of_head == 256 else 0)
        elif alias.startswith("olmo-2"):
            a_layer += size.width + size.keys
        body = size.layers * a_layer + size.hidden
        counted = body + size.vocabulary * size.hidden * (1 if size.tied else 2)
        assert counted == size.parameters, alias
        assert known.parameters >= size.parameters
        assert size.body == body
    seeing = [alias for alias, known in published().items() if known.parameters != known.size.parameters]
    assert seeing == ["gemma-3-4b", "gemma-3-4b-it"], "all others read text alone"


@pytest.mark.parametrize(("alias", "side"), [("tiny", "student"), ("tiny-teacher", "teacher")])
def test_the_facts_of_the_models_that_ship_are_those_of_their_folders(alias: str, side: str) -> None:
    size, of_folder = published()[alias].size, ModelFolder.of(BASES / side).size
    assert all(
        getattr(size, name) == getattr(of_folder, name)
        for name in ("parameters", "hidden", "layers", "inner", "keys", "width", "vocabulary", "tied")
    )


def test_students_and_teachers_have_one_vocabulary() -> None:
    """Embeddings may be padded: Qwen2.5 by 128 rows from 7B on, Gemma 3 by 64 from 4b on, Tulu 3 by 8."""
    rows = {alias: known.size.vocabulary for alias, known in published().items()}
    for family in FAMILIES:
        assert 0 <= rows[family.teacher_alias] - rows[family.alias] <= 128, family.alias
    for pair in READY_PAIRS:
        assert all(0 <= rows[pair.alias] - rows[student] <= 128 for student in pair.students)
        assert all(BY_ALIAS[student] for student in pair.students)
    assert rows["tulu-3-8b"] == 128_264


def test_instruct_models_are_not_fine_tuned_and_keep_their_template(names: Names, family: Family) -> None:
    plan = plan_distill(names, USER, Distill("dckd", family.alias, evaluate=False))
    assert SFT.name not in stages(plan, names)
    assert plan.template == Template(TEMPLATE, END)
    (teacher,) = (node for node in plan.nodes(names.store) if node.stage == DPO_TEACHER.name)
    assert teacher.inputs["model"].content == names.hub_model(family.teacher).content
    assert plan.targets[0].inputs["model"].content == names.hub_model(family.student).content
    for made in (
        plan_dpo_teacher(names, USER, family.alias, (), ()),
        plan_rollout(names, USER, family.alias, (), (), "train"),
    ):
        assert SFT.name not in stages(made, names)


def test_sft_of_an_instruct_alias_fine_tunes_it_with_its_own_template(names: Names, family: Family) -> None:
    plan = plan_sft(names, USER, family.alias, ())
    (node,) = plan.targets
    assert (node.stage, node.inputs["model"].content) == (SFT.name, names.hub_model(family.student).content)
    assert plan.template == Template(TEMPLATE, END)


def test_an_instruct_alias_means_its_model_where_nothing_is_built(names: Names, family: Family) -> None:
    for alias, name in ((family.alias, family.student), (family.teacher_alias, family.teacher)):
        found = lineage.trained(names, alias)
        assert (found.manifest, found.template) == (None, Template(TEMPLATE, END))
        assert family_of_base(name) is family


def test_what_is_made_from_a_base_model_of_a_family_gets_the_template_of_its_siblings(
    hub: Hub, names: Names, tmp_path: Path
) -> None:
    base = BY_ALIAS["olmo-2-1b"]
    hub.add(base.student, folder(tmp_path / "base", "student"))
    assert plan_sft(names, USER, "olmo-2-1b", ()).template == Template(TEMPLATES["olmo-2"].text, END)


def test_a_family_whose_models_bring_templates_takes_them_and_asks_for_one_where_they_do_not(
    hub: Hub, names: Names, tmp_path: Path
) -> None:
    base = BY_ALIAS["qwen2.5-0.5b"]
    hub.add(base.student, folder(tmp_path / "own", "student", TEMPLATE))
    hub.add(BY_ALIAS["qwen2.5-1.5b"].student, folder(tmp_path / "none", "student"))
    assert plan_sft(names, USER, "qwen2.5-0.5b", ()).template == Template(TEMPLATE, END)
    with pytest.raises(UsageError, match="has no chat template"):
        plan_sft(names, USER, "qwen2.5-1.5b", ())


def test_siblings_whose_templates_write_alike_go_together(hub: Hub, names: Names, tmp_path: Path) -> None:
    family = BY_ALIAS["llama-3.2-1b-it"]
    dated, fixed = "{{ strftime_now('%d %b %Y') }}" + TEMPLATE, "26 Jul 2024" + TEMPLATE
    hub.add(family.student, folder(tmp_path / "student", "student", dated))
    hub.add(family.teacher, folder(tmp_path / "teacher", "teacher", fixed))
    assert plan_distill(names, USER, Distill("dckd", family.alias, evaluate=False)).template.text == fixed
    hub.add("org/other", folder(tmp_path / "other", "teacher", TEMPLATE))
    with pytest.raises(UsageError, match="made with another chat template"):
        plan_distill(names, USER, Distill("dckd", family.alias, "org/other", evaluate=False))


def noted(names: Names, teacher: str, reference: str | None) -> list[str]:
    """What is said of a reference in the plans of a capture and of a training."""
    capture = plan_capture(names, USER, teacher, reference, (), (), ())
    request = Distill("dckd", "org/student", teacher, reference, evaluate=False)
    typed = UserSettings({"alpha": "0.2"})  # of whose default something else is said
    said = [*capture.notes, *plan_distill(names, typed, request).notes]
    assert len(set(said)) <= 1
    return said


def test_a_base_model_as_the_reference_of_an_instruct_teacher_is_remarked_on(
    hub: Hub, names: Names, tmp_path: Path
) -> None:
    teacher = folder(tmp_path / "teacher", "teacher", TEMPLATE)
    for name in ("org/aligned", "org/sft", "org/thing-base", "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"):
        hub.add(name, teacher)
    hub.add("org/student", folder(tmp_path / "student", "student", TEMPLATE))
    assert noted(names, "org/aligned", "org/sft") == []
    assert noted(names, "org/aligned", None) == []
    assert noted(names, "org/thing-base", "org/thing-base") == [], "neither was aligned"
    hub.add("org/base", teacher)
    assert noted(names, "org/aligned", "org/base") == [], "it has a template, and its name tells nothing"
    for aligned, reference in (
        ("org/aligned", "org/thing-base"), ("org/aligned", "Qwen/Qwen2.5-7B"),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B"),
    ):  # fmt: skip
        said = noted(names, aligned, reference)
        assert len(said) == 2, (aligned, reference)
        assert reference.rpartition("/")[2] in said[0]
        assert "is a base model" in said[0]
        assert "--reference MODEL" in said[0]


def test_a_ready_pair_gives_the_student_its_template(hub: Hub, names: Names, tmp_path: Path) -> None:
    pair = ready_pairs()["tulu-3-8b"]
    own = TEMPLATE.replace("<|bos|>", "")
    for name in (pair.aligned, pair.reference):
        hub.add(name, folder(tmp_path / name.rpartition("/")[2], "teacher", own))
    hub.add(BY_ALIAS["llama-3.2-1b"].student, folder(tmp_path / "student", "student"))
    plan = plan_distill(names, USER, Distill("adpa", "llama-3.2-1b", pair.alias, evaluate=False))
    assert plan.template == Template(own, END)
    (fine_tuned,) = (node for node in plan.nodes(names.store) if node.stage == SFT.name)
    assert isinstance(fine_tuned, Node)
    assert (fine_tuned.role, fine_tuned.spec.template) == ("student", own)
    (carried,) = plan.notes
    assert "differs between teachers" in carried
