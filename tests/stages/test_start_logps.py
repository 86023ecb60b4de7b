"""Start log-probs: those of a plain forward, the same bytes however they were made, and refused for other answers."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from adpa_cli.engine.layout import examples as ex
from adpa_cli.engine.layout.examples import Answer, PairAnswers
from adpa_cli.errors import AdpaError, Corrupt, Stopped
from adpa_cli.hub import Located
from adpa_cli.signal import answer_index
from adpa_cli.signal.rows import AnswerKey, token_hash
from adpa_cli.spec import hashed
from adpa_cli.stages import Job, Monitor, _logps_table, start_logps
from adpa_cli.stages._logps_table import TABLE, StartLogps, write
from adpa_cli.stages.start_logps import StartSpec
from support.answers import mapped
from support.tiny_models import VOCABULARY, tiny_llama

SPEC = StartSpec(("chosen", "rejected"), "", "", "float32", 64, None, False, False, block_tokens=90)


def pairs() -> dict[str, list[Answer]]:
    """Eleven pairs of one to nine tokens by part, with a prompt in common."""
    draw = np.random.default_rng(0)
    found: dict[str, list[Answer]] = {"chosen": [], "rejected": []}
    for number in range(11):
        prompt = tuple(map(int, draw.integers(5, VOCABULARY, draw.integers(1, 8))))
        for part, answers in found.items():
            ids = tuple(map(int, draw.integers(5, VOCABULARY, draw.integers(1, 10))))
            answers.append(Answer(AnswerKey(f"{number:016x}", part, token_hash(prompt, ids)), prompt, ids))
    return found


def both() -> PairAnswers:
    return mapped(pairs()["chosen"], pairs()["rejected"])


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """The stage on a random model; its rows are given here."""
    tiny_llama(0).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(ex, "answers_for", lambda spec, source, split, folder: both())
    inputs = {
        "model": (Located("model", "model:m", "m", (str(tmp_path / "model"),)),),
        "data": (Located("data", "data:d", "d", ("d",)),),
    }
    return Job("start-logps", "start-logps/test", hashed(SPEC), inputs, "", hints={"training": "distill"})


def made(job: Job, folder: Path, ranks: Sequence[int] = (0,)) -> Job:
    folder.mkdir()
    own = replace(job, work=str(folder))
    for rank in ranks:
        start_logps.compute(own, Monitor(), rank, len(ranks))
    return own


def finished(job: Job) -> bytes:
    start_logps.finish(job)
    return (job.folder / TABLE).read_bytes()


def test_they_are_those_of_a_plain_forward_of_each_answer(job: Job, tmp_path: Path) -> None:
    own = made(job, tmp_path / "made")
    metrics = start_logps.finish(own)
    known = StartLogps(Located("artifact", "artifact:a", "start-logps/a", (str(own.folder),)))
    model, means = tiny_llama(0), {}
    for part, answers in pairs().items():
        found = []
        for answer in answers:
            ids = torch.tensor([[*answer.prompt, *answer.answer]])
            with torch.no_grad():
                logps = model(input_ids=ids).logits[0].double().log_softmax(-1)
            wanted = logps[len(answer.prompt) - 1 : -1].gather(1, torch.tensor(answer.answer)[:, None])[:, 0].numpy()
            assert known.of(answer.key).dtype == np.float32
            np.testing.assert_allclose(known.of(answer.key), wanted, atol=1e-5)
            found.append(wanted)
        means[part] = float(np.concatenate(found).mean())
    assert metrics["answers"] == 22
    assert metrics["tokens"] == sum(len(answer.answer) for answers in pairs().values() for answer in answers)
    assert metrics["mean_logp"] == pytest.approx(means, abs=1e-6)


def test_stops_and_processes_leave_the_bytes_alone(job: Job, tmp_path: Path) -> None:
    whole = made(job, tmp_path / "whole")
    blocks = [path.name for path in sorted(whole.folder.glob("_block-*"))]
    assert len(blocks) > 3
    wanted = finished(whole)
    assert finished(made(job, tmp_path / "two", (1, 0))) == wanted

    stopped = made(job, tmp_path / "stopped", ())
    for number in range(1, len(blocks)):
        with pytest.raises(Stopped, match=f"after block {number} of {len(blocks)}"):
            start_logps.compute(stopped, Monitor(stop=lambda: "SIGTERM"))
    start_logps.compute(stopped, Monitor(stop=lambda: "SIGTERM"))
    assert finished(stopped) == wanted


def test_finished_blocks_are_kept_and_a_torn_one_is_none(job: Job, tmp_path: Path) -> None:
    """As a kill leaves them: some blocks, and one under the private name that it is written by."""
    whole = made(job, tmp_path / "whole")
    blocks = sorted(whole.folder.glob("_block-*"))
    times = {path: path.stat().st_mtime_ns for path in blocks[:2]}
    for path in blocks[2:]:
        path.unlink()
    (whole.folder / f".{blocks[2].name}.1.0a").write_bytes(b"torn")
    start_logps.compute(whole, Monitor())
    assert {path: path.stat().st_mtime_ns for path in blocks[:2]} == times
    assert finished(whole) == finished(made(job, tmp_path / "again"))


def test_the_cut_is_of_the_budget_and_the_numbers_are_not(job: Job, tmp_path: Path) -> None:
    coarse = made(replace(job, spec=hashed(replace(SPEC, block_tokens=10_000))), tmp_path / "coarse")
    fine = made(replace(job, spec=hashed(replace(SPEC, block_tokens=1))), tmp_path / "fine")
    assert [len(list(own.folder.glob("_block-*"))) for own in (coarse, fine)] == [1, 11]
    tables = []
    for own in (coarse, fine):
        finished(own)
        rows = pq.read_table(own.folder / TABLE).to_pylist()
        tables.append({(row["example_id"], row["part"], row["tokens"]): row["logps"] for row in rows})
    assert tables[0].keys() == tables[1].keys()
    for key, logps in tables[0].items():
        assert logps == pytest.approx(tables[1][key], abs=1e-5)


@pytest.mark.parametrize("bits", [64, 2])
def test_a_table_in_groups_is_looked_up_like_a_dict(bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where names have few bits of hash, which many then share."""
    whole = answer_index.name_hash
    monkeypatch.setattr(answer_index, "name_hash", lambda *name: whole(*name) >> (64 - bits))
    draw = np.random.default_rng(0)
    rows = {
        AnswerKey(f"row-{number}", part, f"{number:032x}"): draw.normal(size=draw.integers(1, 9)).astype(np.float32)
        for number in range(100)
        for part in ("chosen", "rejected")
    }
    write(tmp_path / TABLE, iter(rows.items()))
    one = (tmp_path / TABLE).read_bytes()
    monkeypatch.setattr(_logps_table, "GROUP_TOKENS", 50)
    write(tmp_path / TABLE, iter(rows.items()))
    assert pq.ParquetFile(tmp_path / TABLE).num_row_groups > 10
    assert pq.read_table(tmp_path / TABLE) == pq.read_table(io.BytesIO(one))
    known = StartLogps(Located("artifact", "artifact:a", "start-logps/a", (str(tmp_path),)))
    known.check(rows)
    assert len(known) == len(rows)
    assert {name: logps.tolist() for name, logps in known.items()} == {
        (key.example_id, key.part): logps.tolist() for key, logps in rows.items()
    }
    with pytest.raises(AdpaError, match="it was made for 100 others"):
        known.check([*rows, AnswerKey("row-100", "chosen", "")])
    assert ("row-0", "rollout") not in known


def source_of(job: Job) -> Located:
    return Located("artifact", "artifact:a", "start-logps/a", (str(job.folder),))


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"example_id": "row-77"}, r"has no example 'row-77'; it was made for 11 others"),
        (
            {"part": "rollout"},
            r"has no rollout answer of the example '0000000000000003', only chosen and rejected",
        ),
        (
            {"tokens": "0" * 32},
            r"other tokens of the example '0000000000000003' \(chosen\) than .* hashes are [0-9a-f]{32} and 0{32}",
        ),
    ],
)
def test_another_answer_is_refused_and_the_field_named(
    changed: dict[str, str], field: str, job: Job, tmp_path: Path
) -> None:
    own = made(job, tmp_path / "made")
    finished(own)
    known = StartLogps(source_of(own))
    key = pairs()["chosen"][3].key
    assert len(known.of(key)) == len(pairs()["chosen"][3].answer)
    with pytest.raises(AdpaError, match=field) as caught:
        known.of(replace(key, **changed))
    assert caught.value.hint == f"move the folder {own.folder} away and repeat the command: it is made again"


def test_a_table_that_is_damaged_or_gone_is_told_with_what_to_do(job: Job, tmp_path: Path) -> None:
    own = made(job, tmp_path / "made")
    whole = finished(own)
    keys = {(a.key.example_id, a.key.part): a.key for answers in pairs().values() for a in answers}
    rows = pq.read_table(own.folder / TABLE).to_pylist()
    wanted = {(row["example_id"], row["part"]): row["logps"] for row in rows}
    seen = 0
    for place in range(4, len(whole), 97):  # in a page, in the footer, in a name
        (own.folder / TABLE).write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        known = opened(own)
        if isinstance(known, Corrupt):
            seen += 1
            assert known.message.startswith(f"start-logps/a: {TABLE} cannot be read: ")
            assert known.hint == f"move the folder {own.folder} away and repeat the command: it is made again"
        else:
            for (example_id, part), logps in wanted.items():
                assert known.of(keys[example_id, part]).tolist() == logps
    assert seen > 10
    (own.folder / TABLE).unlink()
    with pytest.raises(Corrupt, match=re.escape(f"{TABLE} cannot be read")):
        StartLogps(source_of(own))


def opened(job: Job) -> StartLogps | Corrupt:
    """The table of a finished stage, or what is said of it."""
    try:
        return StartLogps(source_of(job))
    except Corrupt as error:
        return error


def test_log_probs_that_are_no_numbers_are_refused(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {
        ("0000000000000002", "chosen"): np.float32([-1.0]),
        ("0000000000000002", "rejected"): np.float32([-2.0, -np.inf]),
    }
    monkeypatch.setattr("adpa_cli.engine.scoring.label_logps", lambda *_: bad)
    with pytest.raises(
        AdpaError, match=r"the log-probs of example 0000000000000002 \(rejected\) under m are not finite"
    ) as caught:
        made(job, tmp_path / "made")
    assert "--set distill.dtype=float32" in caught.value.hint


def test_a_pair_that_does_not_fit_names_the_length_of_its_training(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("adpa_cli.engine.scoring.label_logps", full)
    with pytest.raises(AdpaError, match=r"start-logps: a block of \d+ × 2 rows of \d+ tokens does not fit") as caught:
        made(replace(job, spec=hashed(replace(SPEC, block_tokens=10_000))), tmp_path / "made")
    assert re.fullmatch(r"--set start-logps\.block_tokens=\d+", caught.value.hint)
    with pytest.raises(AdpaError) as caught:
        made(replace(job, spec=hashed(replace(SPEC, block_tokens=1))), tmp_path / "single")
    assert re.match(r"--set distill\.max_length=\d+, or a device with more memory", caught.value.hint)
