"""`adpa log` and `adpa show --plot`, of what is made and of what is being made."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

from adpa_cli.store.build import LOG
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline
from support.store_samples import new_store, recipe


def test_the_log_of_an_artifact(cli: Cli, pipeline: Pipeline) -> None:
    ref = pipeline.made("distill adpa")
    kept = (pipeline.store / ref / LOG).read_text(encoding="utf-8")
    assert cli("log", ref).out == kept
    assert cli("log", ref, "-f").out == kept
    assert cli("log", "-", stdin=ref).out == kept
    assert json.loads(cli("log", ref, "--json").out)["lines"] == kept.splitlines()
    (pipeline.store / ref / LOG).unlink()
    assert "has no log" in cli.refused(3, "log", ref)
    assert "there is no tag or id" in cli.refused(3, "log", "nothing")


def test_a_log_is_followed_until_its_work_is_an_artifact(cli: Cli, tmp_path: Path) -> None:
    store = new_store(tmp_path)
    one = recipe("sft")
    begun = threading.Event()

    def work() -> None:
        with Store.find(store.root).build(one, command="adpa sft") as made:
            made.save_state({"step": 1, "of": 3})
            (made.dir / LOG).write_text("first\n\x1b[31mred\n")
            begun.set()
            time.sleep(0.5)
            with (made.dir / LOG).open("a") as file:
                file.write("last\nhalf")
            made.commit()

    maker = threading.Thread(target=work)
    maker.start()
    assert begun.wait(20)
    ran = cli("log", one.ref, "-f", "--store", store.root)
    maker.join()
    assert ran.out == "first\n\\x1b[31mred\nlast\nhalf\n"


def test_work_that_was_stopped_has_a_log_too(cli: Cli, tmp_path: Path) -> None:
    store = new_store(tmp_path)
    one = recipe("sft")
    with store.build(one, command="adpa sft") as made:
        (made.dir / LOG).write_text("so far\n")
        made.save_state({"step": 1, "of": 3})
    for words in (("log", one.ref), ("log", one.id[:8], "-f")):
        assert cli(*words, "--store", store.root).out == "so far\n"


def test_plots_of_trainings(cli: Cli, pipeline: Pipeline) -> None:
    both = [pipeline.made("distill dckd"), pipeline.made("distill adpa")]
    rows = cli("show", *both, "--plot", "loss").rows
    assert rows[0] == ["artifact", "number", "step", "value"]
    assert {(row[0], row[1]) for row in rows[1:]} == {(ref, "loss") for ref in both}
    lines = (pipeline.store / both[1] / "metrics.jsonl").read_text().splitlines()
    values = [float(row[3]) for row in rows[1:] if row[0] == both[1]]
    assert values == [json.loads(line)["loss"] for line in lines]
    alone = json.loads(cli("show", both[0], "--plot", "--json").out)
    assert "loss" in alone[both[0]]
    assert cli("show", "--plot=sft", both[0]).rows[1][1] == "sft"


def test_what_cannot_be_drawn(cli: Cli, pipeline: Pipeline) -> None:
    model = pipeline.made("distill adpa")
    assert "there is no such number" in cli.refused(2, "show", model, "--plot", "lss")
    assert "nothing to plot" in cli.refused(2, "show", pipeline.made("rollouts"), "--plot")
    assert "cannot be shown together" in cli.refused(2, "show", model, "--plot", "--recipe")
    assert "--plot needs the name of trainings" in cli.refused(2, "show", "--plot")
