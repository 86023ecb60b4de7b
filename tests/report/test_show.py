"""The screens of `adpa show` from a real store."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.report import compare, listing, page, scores, text
from adpa_cli.store import manifest as manifests
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store, verify
from support.store_samples import DATA, MODEL, new_store, place, recipe

HOUR = 3600.0
NOW = 100 * 24 * HOUR


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path)


def add(store: Store, stage: str, inputs: dict[str, Any], at: float, what: str = "", **fields: Any) -> Manifest:
    """An artifact made `at` seconds before NOW; fields that are no manifest fields are its spec."""
    record = {key: fields.pop(key) for key in ("metrics", "files", "sources") if key in fields}
    if what:
        record["metrics"] = {"what": what, **record.get("metrics", {})}
    command = f"adpa {stage}" if stage != "distill" else "adpa distill --method adpa --student llama-3.2-1b"
    made = {
        "at": manifests.utc(NOW - at),
        "command": command,
        "seconds": 2880.0,
        "host": "box",
        **fields.pop("made", {}),
    }
    return place(store, recipe(stage, inputs, **fields), made=made, **record)


def measure(
    store: Store, model: Manifest, at: float, against: str = "", data: str = "dpo-mix-7k#test", **values: float
) -> Manifest:
    scores = {
        name: {
            "value": value,
            "low": value - 0.017,
            "high": value + 0.017,
            "n": 750,
            **({"against": against} if against else {}),
        }
        for name, value in values.items()
    }
    metrics = {"suite": "accuracy", "data": data, "scores": scores}
    return add(store, "eval", {"model": f"artifact:{model.id}"}, at, metrics=metrics, on=data, names=[*values, against])


@pytest.fixture
def family(store: Store) -> dict[str, Manifest]:
    sources = {DATA: {"name": "argilla/dpo-mix-7k", "commit": "9f1c2e77aa", "rows": 6413}}
    files = {"model.safetensors": {"bytes": 2_500_000_000, "sha256": "0" * 64}}
    sft = add(
        store,
        "sft",
        {"model": MODEL, "data": DATA},
        168 * HOUR,
        "student   llama-3.2-1b",
        files=files,
        sources=sources,
        lr=2e-5,
    )
    cache = add(
        store,
        "cache-teacher",
        {"aligned": MODEL, "data": DATA},
        150 * HOUR,
        "tulu-3-8b pair",
        sources=sources,
        top_k=50,
    )
    inputs = {"model": f"artifact:{sft.id}", "cache": [f"artifact:{cache.id}"], "data": DATA}
    common = {"files": files, "sources": sources, "method": "adpa", "method_version": 1, "lr": 1e-5, "limit": None}
    one = add(store, "distill", inputs, 6 * HOUR, "adpa γ 1.5 llama-3.2-1b", params={"gamma": 1.5}, **common)
    two = add(store, "distill", inputs, 5 * HOUR, "adpa γ 3 llama-3.2-1b", params={"gamma": 3.0}, **common)
    measure(store, sft, 4 * HOUR, reward_accuracy=0.602)
    measure(store, one, 4 * HOUR, reward_accuracy=0.5)
    newer = measure(store, two, 2 * HOUR, reward_accuracy=0.669)
    win = measure(store, one, 1 * HOUR, against=sft.ref, win_rate=0.63)
    store.tag("best", one.id)
    return {"sft": sft, "cache": cache, "one": one, "two": two, "eval": newer, "win": win}


def lines_of(screen: str) -> dict[str, str]:
    return {line.split()[0]: line for line in screen.splitlines() if line.split()}


def test_the_list_shows_each_model_with_its_numbers(store: Store, family: dict[str, Manifest]) -> None:
    screen = listing.screen(listing.collect(store), 120, NOW)
    rows = lines_of(screen)
    assert rows[family["one"].ref].split("  ") == [
        family["one"].ref, *[""] * 3, "adpa γ 1.5 llama-3.2-1b", "best", "2.5 GB", "6 h", "50.0 ±1.7", "63.0 ±1.7"
    ]  # fmt: skip
    assert rows[family["two"].ref].endswith("–     2.5 GB  5 h  66.9 ±1.7")
    assert rows[family["sft"].ref].endswith("60.2 ±1.7  50 (start)")
    assert rows[family["cache"].ref].endswith("tulu-3-8b pair           –     0 B     6 d")
    assert "score: reward-accuracy on dpo-mix-7k#test (n=750)" in screen.splitlines()[0] + screen.splitlines()[1]
    assert "8 artifacts, 7.5 GB, disk free" in screen
    order = [name for name in rows if name.startswith(("distill/", "sft/"))]
    assert order == [family["two"].ref, family["one"].ref, family["sft"].ref], "newest first"
    assert "… 4 more (adpa show --all)" in screen, "evaluations stand in the row of their model"
    assert not any(line.startswith("eval/") for line in screen.splitlines())
    assert f"{family['eval'].ref} " in listing.screen(listing.collect(store), 120, NOW, everything=True)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_the_list_fits_every_width(store: Store, family: dict[str, Manifest], width: int) -> None:
    screen = listing.screen(listing.collect(store), width, NOW)
    assert max(map(text.width_of, screen.splitlines())) <= width


def test_the_newest_evaluation_counts(store: Store) -> None:
    model = add(store, "sft", {}, 9 * HOUR)
    measure(store, model, 2 * HOUR, reward_accuracy=0.7)
    measure(store, model, 1 * HOUR, reward_accuracy=0.8, mean_reward=1.25)
    measure(store, model, 3 * HOUR, reward_accuracy=0.6, win_rate=0.5)
    assert "80.0 ±1.7" in lines_of(listing.screen(listing.collect(store), 120, NOW))[model.ref]


def test_numbers_of_another_data_set_are_marked(store: Store) -> None:
    old, new = add(store, "sft", {}, 9 * HOUR, n=1), add(store, "sft", {}, 8 * HOUR, n=2)
    measure(store, old, 7 * HOUR, data="hh-rlhf#test", reward_accuracy=0.9)
    measure(store, new, 6 * HOUR, reward_accuracy=0.6)
    screen = listing.screen(listing.collect(store), 120, NOW)
    assert lines_of(screen)[old.ref].endswith("90.0 ±1.7 †")
    assert lines_of(screen)[new.ref].endswith("60.0 ±1.7")
    assert "† not measured as the score named above" in screen
    measure(store, old, 5 * HOUR, reward_accuracy=0.65)
    screen = listing.screen(listing.collect(store), 120, NOW)
    assert lines_of(screen)[old.ref].endswith("65.0 ±1.7")
    assert "†" not in screen


def test_mean_rewards_are_no_percentages(store: Store) -> None:
    model = add(store, "sft", {}, 9 * HOUR)
    measure(store, model, 1 * HOUR, mean_reward=-1.254)
    assert lines_of(listing.screen(listing.collect(store), 120, NOW))[model.ref].endswith("-1.25 ±0.02")


def test_long_lists_are_cut_and_rehearsals_hidden(store: Store) -> None:
    for number in range(30):
        add(store, "sft", {}, number * HOUR, n=number)
    add(store, "sft", {}, 0.0, n="rehearsal", made={"smoke": True})
    found = listing.collect(store)
    screen = listing.screen(found, 100, NOW)
    assert screen.count("sft/") == listing.SHORT
    assert f"… {31 - listing.SHORT} more (adpa show --all)" in screen
    assert listing.screen(found, 100, NOW, everything=True).count("sft/") == 31


def test_a_rehearsal_is_listed_by_its_tag_and_a_list_without_rows_says_why(store: Store) -> None:
    made = add(store, "sft", {}, 0.0, n="rehearsal", made={"smoke": True})
    assert listing.screen(listing.collect(store), 100, NOW).endswith(
        "\nonly --smoke runs and evaluations\n… 1 more (adpa show --all)\n"
    )
    store.tag("first", made.ref)
    assert f"{made.ref} " in listing.screen(listing.collect(store), 100, NOW)


def test_a_cut_list_keeps_what_is_named_or_measured(store: Store) -> None:
    start = add(store, "sft", {}, 90 * HOUR)
    model = add(store, "distill", {"model": f"artifact:{start.id}"}, 90 * HOUR)
    named = add(store, "rollout", {}, 80 * HOUR, n="named")
    store.tag("kept", named.id)
    measure(store, model, 70 * HOUR, against=start.ref, win_rate=0.63)
    for number in range(20):
        add(store, "rollout", {}, number * HOUR, n=number)
    screen = listing.screen(listing.collect(store), 120, NOW)
    refs = [line.split()[0] for line in screen.splitlines()[2:] if "/" in line.split()[0]]
    assert {named.ref, model.ref, start.ref} <= set(refs)
    assert "50 (start)" in screen
    assert len(refs) == listing.SHORT


def test_a_long_text_does_not_push_numbers_out_of_their_columns(store: Store) -> None:
    one, two, three = (add(store, "sft", {}, HOUR, "long " * 20 + str(n), lr=n) for n in range(3))
    refs = [one.ref, two.ref, three.ref]
    lines = compare.screen(compare.collect(store, [one, two, three]), 118).splitlines()
    assert lines[0].split() == ["differs", "in", *refs]
    assert lines[2].split() == ["lr", "0", "1", "2"]


def test_a_warning_is_wrapped_between_words_and_empty_lists_are_no_metrics(store: Store) -> None:
    made = add(store, "sft", {}, HOUR, metrics={"watch": ["a word " * 30], "notes": [], "tokens": 3})
    screen = page.screen(page.collect(store, made), 60, NOW)
    assert max(map(len, screen.splitlines())) <= 60
    assert "notes" not in screen
    assert "tokens 3" in screen


def test_unfinished_work_shows_how_far_it_is_and_how_to_go_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADPA_STORE", str(store.root))  # so that the store need not be named
    command = "adpa distill --method adpa+ --student llama-3.2-1b --teacher tulu-3-8b --set gamma=5 --tag " + "x" * 60
    with store.build(recipe("distill", n=1), command=command) as work:
        work.save_state({"step": 94, "of": 151}, "SIGTERM")
    found = listing.collect(store)
    lines = listing.screen(found, 100, found.unfinished[0].at + 5 * 86400).splitlines()
    assert lines[-3:] == [
        "unfinished",
        f"{recipe('distill', n=1).ref}  62 %, step 94 of 151, stopped 5 d ago by SIGTERM",
        f"  continue with: {command}",
    ]
    with store.build(recipe("distill", n=1), command=command):
        assert "being built by process" in listing.screen(listing.collect(store), 200, NOW)


def test_a_damaged_manifest_is_named_and_hides_nothing(store: Store) -> None:
    good, bad = add(store, "sft", {}, HOUR, n=1), add(store, "sft", {}, HOUR, n=2)
    (store.folder(bad.ref) / "manifest.json").write_text("{")
    screen = listing.screen(listing.collect(store), 200, NOW)
    assert good.ref in screen
    assert "unreadable: " in screen
    assert bad.id[:12] in screen


def test_the_piped_list_is_uncut_and_plain(store: Store, family: dict[str, Manifest]) -> None:
    rows = [line.split("\t") for line in listing.tsv(listing.collect(store)).splitlines()]
    assert len(rows) == 8
    one = next(row for row in rows if row[0] == family["one"].ref)
    assert one == [
        family["one"].ref,
        "adpa γ 1.5 llama-3.2-1b",
        "best",
        "2500000000",
        manifests.utc(NOW - 6 * HOUR),
        "0.5",
        "0.63",
        "complete",
        "",
    ]
    with store.build(recipe("distill", n=1), command="adpa distill …") as work:
        work.save_state({"step": 94, "of": 151}, "SIGTERM")
    *others, begun = [line.split("\t") for line in listing.tsv(listing.collect(store)).splitlines()]
    assert others == rows
    assert begun[:4] == [recipe("distill", n=1).ref, "62 %, step 94 of 151", "", ""]
    assert begun[5:8] == ["", "", "stopped"]
    assert begun[8].startswith("adpa distill …")
    assert {len(row) for row in (*rows, begun)} == {len(listing.HEADER) + 2}


def test_the_list_as_json(store: Store, family: dict[str, Manifest]) -> None:
    found = json.loads(json.dumps(listing.record(listing.collect(store))))
    one = next(item for item in found["artifacts"] if item["id"] == family["one"].id)
    assert one["tags"] == ["best"]
    assert one["score"]["value"] == 0.5
    assert one["win"]["against"] == family["sft"].ref


def test_an_empty_store_is_a_list_of_nothing(store: Store) -> None:
    found = listing.collect(store)
    assert len(listing.screen(found, 200, NOW).splitlines()) == 1
    assert listing.tsv(found) == ""


def test_a_page_tells_origin_use_and_numbers(store: Store, family: dict[str, Manifest]) -> None:
    one = family["one"]
    steps = "".join(json.dumps({"step": n, "loss": 2 - n / 10, "advantage": n, "lr": 1e-5}) + "\n" for n in range(10))
    (store.folder(one.ref) / "metrics.jsonl").write_text(steps + '{"step": 10, "lo')
    screen = page.screen(page.collect(store, one), 110, NOW)
    assert screen.splitlines()[0] == f"{one.ref}  tag best  complete, not verified yet  1 file, 2.5 GB"
    expected = f"""\
        made by   adpa distill --method adpa --student llama-3.2-1b     48 min on box, 6 h ago
        made from
          {family["cache"].ref}  tulu-3-8b pair  (cache)
          ├ {MODEL[6:18]}  (aligned)
          └ argilla/dpo-mix-7k@9f1c2e7 6,413 rows  (data)
          argilla/dpo-mix-7k@9f1c2e7 6,413 rows  (data)
          {family["sft"].ref}  student llama-3.2-1b  (model)
        curves    loss 2 █▇▆▆▅▄▃▃▂▁ 1.1    advantage 0 ▁▂▃▃▄▅▆▆▇█ 9
        next      adpa chat best · adpa eval best · vllm serve $(adpa path best) · adpa export best DIR --to hf
                  adpa show best --recipe > again.toml"""
    for line in textwrap.dedent(expected).splitlines():
        assert line in screen.splitlines()
    assert f"  {family['win'].ref}  win-rate 63.0 ±1.7 against {family['sft'].ref}" in screen
    assert "lr 1e-5" in screen
    assert "limit" not in screen, "what is unset is not shown"
    assert "gamma 1.5" in screen


def test_a_page_of_every_stage_fits_and_names_what_comes_next(store: Store, family: dict[str, Manifest]) -> None:
    answers = add(store, "rollout", {"model": f"artifact:{family['sft'].id}"}, HOUR)
    for manifest, following in (
        (answers, f"adpa cache-teacher --teacher MODEL --rollouts {answers.ref}"),
        (family["cache"], f"--cache {family['cache'].ref}"),
        (family["eval"], f"adpa show {family['two'].ref}"),
        (family["sft"], f"adpa chat {family['sft'].ref}"),
    ):
        screen = page.screen(page.collect(store, manifest), 100, NOW)
        assert following in screen
        assert max(map(text.width_of, screen.splitlines())) <= 100


def test_what_a_later_version_made_is_shown_by_what_it_holds(store: Store, family: dict[str, Manifest]) -> None:
    """Of a stage that is none here: with weights it is a model, without any it leads to the model that it is about."""
    inputs = {"model": f"artifact:{family['one'].id}", "data": DATA}
    weights = {"model.safetensors": {"bytes": 9, "sha256": "0" * 64}}
    spec = {"method": "zeta", "params": {"x": 1}, "lr": 3e-5}
    model = add(store, "later-model", inputs, HOUR, "zeta of best", files=weights, **spec)
    judged = add(store, "later-scores", inputs, HOUR, metrics={"scores": {"win_rate": {"value": 0.5}}})
    shown = page.screen(page.collect(store, model), 100, NOW)
    assert "method    zeta  x 1  lr 3e-5" in shown.splitlines()
    assert f"adpa chat {model.ref}" in shown
    other = page.collect(store, judged)
    assert page.next_commands(other) == [f"adpa show {family['one'].ref}"]
    assert list(other.scores) == [], "what it measured is not known"
    rows = lines_of(listing.screen(listing.collect(store), 120, NOW, everything=True))
    assert " zeta of best " in rows[model.ref]
    assert " later-scores " in rows[judged.ref]
    assert compare.collect(store, [model, judged]).rows["stage"] == ["later-model", "later-scores"]


def test_a_page_says_when_it_was_verified(store: Store) -> None:
    made = add(store, "sft", {}, HOUR)
    assert verify(store, made) == []
    found = page.collect(store, made)
    assert found.verified is not None
    assert "verified 6 d ago" in page.screen(found, 100, found.verified + 6.5 * 86400)


def test_lineage_opens_each_artifact_once_and_bears_gaps(store: Store) -> None:
    base = add(store, "sft", {"data": DATA, "gone": "artifact:" + "9" * 64}, 3 * HOUR)
    answers = add(store, "rollout", {"model": f"artifact:{base.id}"}, 2 * HOUR)
    made = add(store, "distill", {"a": [f"artifact:{answers.id}"], "model": f"artifact:{base.id}"}, HOUR)
    lines = page.screen(page.collect(store, made), 100, NOW).splitlines()
    start = lines.index("made from")
    assert lines[start + 1 : start + 6] == [
        f"  {answers.ref}  rollout  (a)",
        f"  └ {base.ref}  sft  (model)",
        "    ├ dddddddddddd  (data)",
        "    └ 999999999999  not in this store  (gone)",
        f"  {base.ref}  see above  (model)",
    ]


def test_a_parameter_of_an_unknown_method_is_shown_without_origin(store: Store) -> None:
    made = add(store, "distill", {}, HOUR, method="from-the-future", params={"gamma": 2.0}, seed=0)
    assert page.spec_items(made.spec) == ["from-the-future", "gamma 2", "seed 0"]


def test_defaults_that_the_paper_does_not_give_say_whose_they_are() -> None:
    from adpa_cli import methods

    params = {field.name: field for field in methods.load("adpa").params.__dataclass_fields__.values()}
    ours = [name for name, field in params.items() if field.metadata["origin"] == "ours"]
    spec = {"method": "adpa", "params": {name: field.default for name, field in params.items()}}
    shown = page.spec_items(spec)
    assert [item.split()[0] for item in shown if item.endswith(" [ours]")] == ours
    assert "gamma 77" in page.spec_items({"method": "adpa", "params": {**spec["params"], "gamma": 77.0}})


def test_several_artifacts_show_only_what_differs(store: Store, family: dict[str, Manifest]) -> None:
    refs = [family["one"].ref, family["two"].ref]
    found = compare.collect(store, [family["one"], family["two"]])
    assert found.rows == {
        "what": ["adpa γ 1.5 llama-3.2-1b", "adpa γ 3 llama-3.2-1b"],
        "gamma": [1.5, 3.0],
        "reward-accuracy on dpo-mix-7k#test (n=750) [accuracy]": ["50.0 ±1.7", "66.9 ±1.7"],
        f"win-rate against {family['sft'].ref} on dpo-mix-7k#test (n=750) [accuracy]": ["63.0 ±1.7", None],
    }
    wide = compare.screen(found, 120).splitlines()
    assert wide[0].split() == ["differs", "in", "best", refs[1]]
    assert wide[1].split() == ["id", *refs]
    assert [line for line in wide if not line.startswith(" ")][2:] == ["settings", "scores"]
    assert wide[4].split() == ["gamma", "1.5", "3"]
    narrow = compare.screen(found, 50)
    assert narrow.startswith(f"best = {refs[0]}\n")
    assert f"gamma\n  {'best':<{len(refs[1])}}  1.5\n  {refs[1]}  3\n" in narrow
    assert compare.tsv(found).splitlines()[2] == "gamma\t1.5\t3.0"
    record = json.loads(json.dumps(compare.record(found)))
    assert [made["ref"] for made in record["artifacts"]] == refs
    assert record["settings"] == {"what": found.rows["what"], "gamma": [1.5, 3.0]}
    assert [score["value"] for score in record["scores"][0]] == [0.63, 0.5]
    assert compare.collect(store, [family["one"], family["one"]]).rows == {}
    assert "do not differ" in compare.screen(compare.collect(store, [family["one"], family["one"]]), 80)


def test_win_rates_against_different_opponents_are_told_apart(store: Store, family: dict[str, Manifest]) -> None:
    """A newer one, against another model than the start, stands in a row and a column of its own."""
    one, two, sft = family["one"], family["two"], family["sft"]
    measure(store, one, 0.5 * HOUR, against=two.ref, win_rate=0.41)
    measure(store, two, 0.5 * HOUR, against=sft.ref, win_rate=0.58)
    row = {row.manifest.ref: row for row in listing.collect(store).rows}[one.ref]
    assert row.win is not None
    assert (row.win.value, row.win.against) == (0.63, sft.ref), "the list has wins over the start"
    screen = compare.screen(compare.collect(store, [one, two]), 200)
    for opponent, values in ((sft, ["63.0", "±1.7", "58.0", "±1.7"]), (two, ["41.0", "±1.7"])):
        (line,) = (line for line in screen.splitlines() if line.strip().startswith(f"win-rate against {opponent.ref}"))
        assert [word for word in line.split() if word in values] == values
    measured = scores.by_model(store.artifacts())
    table = scores.screen([scores.Line({}, each.ref, tuple(measured[each.id])) for each in (one, two)], 200)
    assert f"WIN RATE against {sft.ref}" in table.splitlines()[0]
    assert f"WIN RATE against {two.ref}" in table.splitlines()[0]


def test_a_row_is_averaged_over_all_its_seeds_whatever_was_chosen_for_each() -> None:
    """A mean over the seeds alone that chose one value would be of some seeds, picked by their luck."""
    values = {("0", "5"): 0.2, ("1", "5"): 0.3, ("2", "1"): 0.7}

    def table(chosen: tuple[str, ...]) -> list[str]:
        lines = []
        for (seed, gamma), value in values.items():
            score = scores.Score("mean_reward", value, None, None, None, "tiny", "pairs", "", "", "eval/1", 0)
            lines.append(scores.Line({"seed": seed, "gamma": gamma}, f"distill/{seed}", (score,), chosen=chosen))
        return [line.rstrip() for line in scores.screen(lines, 200).splitlines() if re.match(r"\d seeds ", line)]

    (chosen,), (fixed,) = table(("gamma",)), table(())
    assert re.split(r"  +", chosen) == ["3 seeds", "5, 1", "0.400 ±0.265"]
    assert re.split(r"  +", fixed) == ["2 seeds", "5", "0.250 ±0.071"], "of a grid each setting is a line"


def test_external_content_is_compared_by_digest(store: Store) -> None:
    named = {"data:" + digit * 64: {"name": "pairs.jsonl"} for digit in "12"}
    one, two = (add(store, "sft", {"data": "data:" + digit * 64}, HOUR, sources=named) for digit in "12")
    rows = compare.collect(store, [one, two]).rows
    assert rows == {"from data": ["pairs.jsonl (11111111)", "pairs.jsonl (22222222)"]}


def test_five_hundred_artifacts_list_without_heavy_libraries(store: Store) -> None:
    for number in range(500):
        add(store, "sft", {}, number * HOUR, n=number)
    program = """
        import sys
        class Block:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in sys.argv[2].split():
                    raise ImportError(f"{name} is imported")
        sys.meta_path.insert(0, Block())
        from pathlib import Path
        from adpa_cli.report import compare, listing, page
        from adpa_cli.store.store import Store
        from adpa_cli.store.store import verify
        store = Store.find(Path(sys.argv[1]))
        found = listing.collect(store)
        print(listing.tsv(found).count(chr(10)), listing.screen(found, 100, 0.0).count("sft/"))
        one = store.resolve("sft@latest")
        assert one.ref in page.screen(page.collect(store, one), 100, 0.0) and verify(store, one) == []
    """
    blocked = "torch transformers datasets accelerate pyarrow numpy rich"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(store.root), blocked],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["500", str(listing.SHORT)], done.stderr


def test_fewer_than_twenty_rows_tell_nothing() -> None:
    few, enough = (
        scores.Score("win_rate", 0.75, 0.75, 0.75, n, "tiny", "pairs", "", "start", "eval/1", 0) for n in (19, 20)
    )
    assert few.words() == "75.0 (too few to tell)"
    assert enough.words() == "75.0 ±0.0"


def test_benchmarks_stand_in_the_order_of_their_suite_with_the_mean_last(store: Store) -> None:
    names = ("mean_of_six", "winogrande", "gsm8k", "arc_challenge", "mmlu", "mmlu_weighted", "hellaswag")
    made = add(
        store, "eval", {"model": MODEL}, 1,
        metrics={"suite": "open-llm-v1", "scores": {name: {"value": 0.5, "n": 30} for name in names}},
        tasks={name: {} for name in names[1:] if name != "mmlu_weighted"},
    )  # fmt: skip
    found = [score.metric for score in scores.scores(made)]
    assert found == ["arc_challenge", "hellaswag", "mmlu", "mmlu_weighted", "winogrande", "gsm8k", "mean_of_six"]
