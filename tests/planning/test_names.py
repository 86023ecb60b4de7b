"""What a name means and what an id is made of: the cases where two meanings would look alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers

from adpa_cli.data.chat import Encoder
from adpa_cli.data.examples import Message
from adpa_cli.data.templates import ZEPHYR, Template
from adpa_cli.data.tokenizer import Tokenizer as FolderTokenizer
from adpa_cli.engine.models import load, save
from adpa_cli.errors import DataError
from adpa_cli.families import alias_of_base, family_of_base
from adpa_cli.hub import External
from adpa_cli.lab import BASES, END
from adpa_cli.planning import lineage
from adpa_cli.planning.distill_builder import Distill, plan_distill
from adpa_cli.planning.planner import Planner, Teachers
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import UserSettings
from adpa_cli.store.store import Store
from support.tiny_models import TEMPLATE, tiny_llama, tiny_tokenizer

PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.find(tmp_path / "adpa-store", create=True)


def lines(path: Path, *words: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({**PAIR, "prompt": word}) + "\n" for word in words))


def test_the_file_names_that_decide_a_split_are_part_of_the_data(tmp_path: Path, store: Store) -> None:
    lines(tmp_path / "split" / "dev.jsonl", "a", "b")
    lines(tmp_path / "split" / "train.jsonl", "c", "d")
    lines(tmp_path / "whole" / "1.jsonl", "a", "b")
    lines(tmp_path / "whole" / "2.jsonl", "c", "d")
    found = Names(store)
    split, whole = (found.data([str(tmp_path / name)]).content for name in ("split", "whole"))
    assert split != whole
    lines(tmp_path / "again" / "x_dev.jsonl", "a", "b")
    lines(tmp_path / "again" / "x_train.jsonl", "c", "d")
    assert found.data([str(tmp_path / "again")]).content == split, "other words of a name decide nothing"


def test_nothing_beneath_a_finished_artifact_is_looked_at(store: Store) -> None:
    asked = Distill("dckd", "tiny", evaluate=False)
    plan = plan_distill(Names(store), UserSettings(), asked)
    assert len(plan.nodes(store)) == 6
    with store.build(plan.targets[0].recipe, command="adpa distill …") as work:
        work.commit()
    assert plan.nodes(store) == [plan.targets[0]]


def test_a_capture_for_a_smaller_vocabulary_says_so_in_its_spec(tmp_path: Path, store: Store) -> None:
    for name, words in (("student", ()), ("teacher", ("extra",))):
        tokenizer = tiny_tokenizer()
        tokenizer.core.add_tokens(list(words))
        save(tiny_llama(vocabulary=64), tokenizer, tmp_path / name, TEMPLATE, "<end>")
    found = Names(store)
    student, teacher = (found.folder(tmp_path / name) for name in ("student", "teacher"))
    size = len(tiny_tokenizer().vocabulary)
    assert lineage.smaller_vocabulary(student, teacher, store) == size
    assert lineage.smaller_vocabulary(teacher, student, store) is None
    family = lineage.family_of(student, store)
    data = External("data:" + "0" * 64, "d", ())
    planner = Planner(found, UserSettings(), "")
    teachers = Teachers(teacher, None, family, Template(TEMPLATE, "<end>"))
    node = planner.capture(teachers, {"data": data}, ("chosen",), student)
    assert node.recipe.spec["student_vocab"] == size
    node = planner.capture(teachers, {"data": data}, ("chosen",), teacher)
    assert "student_vocab" not in node.recipe.spec, "where it means nothing it moves no id"


def test_a_base_model_belongs_to_the_first_family_that_names_it() -> None:
    shared = "mistralai/Mistral-7B-v0.1"  # the teacher of two families
    family = family_of_base(shared)
    assert family is not None
    assert family.student == "h2oai/h2o-danube3-500m-base"
    assert (alias_of_base(shared), alias_of_base(shared, "student")) == ("mistral-7b", "")
    assert (family_of_base("org/other"), alias_of_base("org/other")) == (None, "")


def test_exact_precision_is_exact_for_the_pair_too(store: Store) -> None:
    planner = Planner(Names(store), UserSettings({"precision": "0"}), "cache-teacher")
    model, data = External("model:" + "1" * 64, "m", (str(BASES / "teacher"),)), External("data:" + "0" * 64, "d", ())
    family = lineage.family_of(model, store)
    node = planner.capture(Teachers(model, model, family, Template("t", END)), {"data": data}, ("chosen",))
    assert (node.spec.precision, node.spec.pair_precision) == (0.0, 0.0)


def test_of_two_paddings_of_one_vocabulary_a_capture_keeps_the_ids_of_the_student(tmp_path: Path, store: Store) -> None:
    for name, rows in (("small", 48), ("large", 64)):
        save(tiny_llama(vocabulary=rows), tiny_tokenizer(), tmp_path / name, TEMPLATE, "<end>")
    small, large = (Names(store).folder(tmp_path / name) for name in ("small", "large"))
    assert lineage.smaller_vocabulary(small, large, store) == 48
    assert lineage.smaller_vocabulary(large, small, store) is None
    assert lineage.smaller_vocabulary(small, small, store) is None


def test_a_template_that_prints_the_date_prints_the_same_one_every_day() -> None:
    dated = Template("{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}", "<end>")
    assert Encoder(tiny_tokenizer(), dated).render([Message("user", "w1")], ask=True) == "26 Jul 2024 w1"


def test_an_answer_does_not_begin_with_the_space_that_sentencepiece_puts_before_a_text() -> None:
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("▁Hello", -1.0), ("Hello", -1.0), ("\n", -1.0)]
    core = Tokenizer(models.Unigram(pieces, 0))
    core.normalizer = normalizers.Prepend("▁")
    core.add_special_tokens(["<s>", "</s>"])
    tokenizer = FolderTokenizer(core, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    assert [tokenizer.token_of(i) for i in tokenizer.ids("Hello")] == ["▁Hello"]
    answer = Encoder(tokenizer, ZEPHYR).answer([Message("user", "Hello")], "Hello")
    assert [tokenizer.token_of(i) for i in answer] == ["Hello", "</s>"]


def test_weights_are_loaded_in_float32_whatever_a_folder_holds(tmp_path: Path) -> None:
    import torch

    model = tiny_llama()
    save(model, tiny_tokenizer(), tmp_path / "m", TEMPLATE, "<end>")
    half = model.to(torch.bfloat16)
    half.save_pretrained(tmp_path / "h")
    assert {p.dtype for p in load(tmp_path / "h").parameters()} == {torch.float32}


def test_data_that_have_moved_are_asked_for(tmp_path: Path, store: Store) -> None:
    lines(tmp_path / "pairs.jsonl", "a", "b", "c")
    found = Names(store).data([str(tmp_path / "pairs.jsonl")])
    assert Names(store).data_of(found.facts, found.content).content == found.content
    (tmp_path / "pairs.jsonl").unlink()
    from adpa_cli.errors import NotFound

    with pytest.raises(NotFound, match=r"pairs\.jsonl"):
        Names(store).data_of(found.facts, found.content)
    with pytest.raises((NotFound, DataError)):
        Names(store).data([str(tmp_path / "pairs.jsonl")])
