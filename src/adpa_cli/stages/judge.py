"""The `judgements` stage: what a judge says of two models' answers to each prompt, in both orders, or of pairs.

A judge is a model behind any OpenAI-compatible endpoint. Where it listens, with which key, and how many calls are under
way at once is how the stage runs; its name, what it is asked and how it answers are in the id. Answers that are one
text are not compared. Calls lie in the work folder as soon as they are answered, and a repeated command asks for those
only that it lacks.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from adpa_cli.disk import write_json
from adpa_cli.errors import AdpaError, ComeAgain, UsageError
from adpa_cli.hub import External
from adpa_cli.judges.calls import Asked, Call, Journal, ask_all, call_facts, name_of, write_rows
from adpa_cli.judges.client import Endpoint, Reply, openai_module
from adpa_cli.judges.prompts import prompt_name, question_words, read_templates
from adpa_cli.judges.verdicts import Verdict, grade, preference
from adpa_cli.judges.win_rates import detectable
from adpa_cli.sizes import Disk, Memory, Row, Rows
from adpa_cli.spec import Runtime, make
from adpa_cli.stages import Job, Lengths, Load, Monitor, Node, Stage, stop_if_asked
from adpa_cli.stages._judge_calls import ORDERS, PAIRS, planned
from adpa_cli.suites import AGAINST, ROLLOUTS

CALLS, UNUSABLE = "_calls.jsonl", "_unusable.json"
"""In the work folder: the calls that were answered, and the last tries of those that were not."""
SHOWN = 3
BYTES_PER_CALL = 1000
SHORT, LONG = 16, 2048
"""The most tokens of a reply that is one mark, and of one that explains itself first."""
CHARS, MARK_TOKENS, EXPLAINED_TOKENS = 4.0, 2, 300
"""Characters of a token, and tokens of a reply, as they usually are."""


@dataclass(frozen=True)
class JudgeSpec:
    """One `judgements` stage: who judges, what is asked, and how the judge answers."""

    judge: str
    """The name of the model, as its server knows it."""
    prompts: str
    """The templates that are filled in, as `judges.prompts` stores them."""
    judged: Literal["answers", "pairs", "turns"] = "answers"
    """What is compared: answers of two models, or the two of each pair of some data; or the turns that are graded."""
    verdict: Literal["logprobs", "text"] = "logprobs"
    """Whether log-probs are asked for; where a server gives none the text is read all the same."""
    top_logprobs: int = field(default=20, metadata={"low": 1, "high": 20})
    temperature: float | None = 0.0
    max_tokens: int | None = field(default=SHORT, metadata={"low": 1})
    max_completion_tokens: int | None = field(default=None, metadata={"neutral": None, "low": 1})
    """Sent instead of `max_tokens`, which newer servers refuse."""
    judge_seed: int | None = field(default=None, metadata={"neutral": None})
    unparsable: Literal["ask", "leave-out"] = field(default="ask", metadata={"neutral": "ask"})
    """Whether calls without a verdict are asked again by the next command, or left out of the artifact."""
    split: Literal["test", "train", "all"] = "test"
    limit: int | None = None
    skip_bad_rows: bool = False
    """Of pairs; answers are all of those that are given."""
    smoke: bool = field(default=False, metadata={"neutral": False})

    def without_effect(self) -> set[str]:
        """No number of log-probs where none is asked for, one limit of tokens at a time, and rows of pairs only."""
        idle = {"top_logprobs"} if self.verdict == "text" or self.judged == "turns" else set()
        idle |= {"verdict"} if self.judged == "turns" else set()
        idle |= {"split", "limit", "skip_bad_rows"} if self.judged != "pairs" else set()
        return {*idle, "max_tokens"} if self.max_completion_tokens else idle

    def __post_init__(self) -> None:
        if not self.judge.strip():
            raise UsageError("--judge is empty", "give the name by which the server knows the model: --judge NAME")

    @property
    def dtype(self) -> str:
        """Nothing is computed here."""
        return "float32"

    @property
    def max_length(self) -> int:
        """Of rows that cannot be read yet, for estimates."""
        return 2048

    @property
    def parameters(self) -> dict[str, Any]:
        """Of the request, beside the messages."""
        is_listed = self.verdict == "logprobs" and self.judged != "turns"
        most = "max_completion_tokens" if self.max_completion_tokens else "max_tokens"
        values = {
            "model": self.judge, "temperature": self.temperature, most: getattr(self, most), "seed": self.judge_seed,
            **({"logprobs": True, "top_logprobs": self.top_logprobs} if is_listed else {}),
        }  # fmt: skip
        return {name: value for name, value in values.items() if value is not None}


def compute(job: Job, monitor: Monitor, rank: int = 0, processes: int = 1) -> None:
    """Ask every call that the work folder lacks. Run by one process only."""
    spec = make(JudgeSpec, job.spec)
    wanted = [one for one in planned(job, spec, monitor.note) if isinstance(one, Call)]
    earlier = job.folder.parent / str(job.hints.get("calls_of", "")) / CALLS
    if not (job.folder / CALLS).exists() and earlier.exists():
        shutil.copyfile(earlier, job.folder / CALLS)
    with contextlib.closing(Journal(job.folder / CALLS)) as journal:
        left = [call for call in wanted if not _is_kept(call, journal)]
        unusable: list[dict[str, Any]] = []
        if left:
            unusable = ask_all(
                left, journal, Asked(spec.parameters, _reading(spec)), endpoint_of(spec.judge, job.runtime),
                lambda done: monitor.progress(done, len(wanted), {}), monitor.stop,
            )  # fmt: skip
        write_json(job.folder / UNUSABLE, unusable)
        if len(journal.rows) + len(unusable) < len(wanted):
            stop_if_asked(monitor, len(journal.rows), len(wanted))


def _is_kept(call: Call, journal: Journal) -> bool:
    """Whether the journal has the answer to these very messages."""
    row = journal.rows.get(call.name)
    return row is not None and row["messages"] == call.digest


def _reading(spec: JudgeSpec) -> Callable[[Reply], Verdict | None]:
    """How a reply is read: as a preference by the marks of the template, or as a grade."""
    marks = read_templates(spec.prompts)[0].marks

    def read(reply: Reply) -> Verdict | None:
        tokens = reply.tokens if spec.verdict == "logprobs" else None
        return preference(reply.text, tokens, marks) if marks else grade(reply.text)

    return read


def check(spec: JudgeSpec, runtime: Runtime) -> None:
    """Raise UsageError where nobody said where the judge listens, AdpaError where openai is not installed."""
    endpoint_of(spec.judge, runtime)
    openai_module()


def endpoint_of(judge: str, runtime: Runtime) -> Endpoint:
    """Where a judge listens; UsageError where nobody said."""
    if not runtime.judge_url:
        raise UsageError(f"the address of the judge {judge} is missing", "add it: --judge-url http://HOST:PORT/v1")
    return Endpoint(runtime.judge_url, runtime.judge_concurrency, runtime.judge_timeout)


def finish(job: Job) -> dict[str, Any]:
    """One file of all calls, in the order of the prompts. ComeAgain where some have no verdict, unless they are to be
    left out; AdpaError where none has."""
    spec = make(JudgeSpec, job.spec)
    with contextlib.closing(Journal(job.folder / CALLS)) as journal:
        kept = journal.rows
    unusable: list[dict[str, Any]] = json.loads((job.folder / UNUSABLE).read_text(encoding="utf-8"))
    lost = {name_of(row): {"verdict": None, **row} for row in unusable}
    every = planned(job, spec)
    rows = [one if isinstance(one, dict) else kept.get(one.name) or lost[one.name] for one in every]
    write_rows(job.folder, rows)
    facts = call_facts(rows)
    if unusable and not facts["stored"]:
        raise AdpaError(
            f"none of the {len(unusable):,} replies of the judge {spec.judge} can be used{_shown(unusable)}",
            _hint(unusable),
        )
    if unusable and spec.unparsable == "ask":
        raise ComeAgain(
            f"{len(unusable):,} of {len(kept) + len(unusable):,} replies of the judge {spec.judge} contain no verdict"
            f"{_shown(unusable)}",
            f"run the same command to ask again for these only; {_hint(unusable)}, or skip them: "
            "--set eval.unparsable=leave-out",
        )
    is_text = spec.judged != "turns" and spec.verdict != "text" and facts["from_logprobs"] < facts["stored"]
    listed = f"{facts['from_logprobs']:,} of {facts['stored']:,}"
    said = (
        {"say": [f"log-probs were given for {listed} verdicts; the others are read from the text"]} if is_text else {}
    )
    return {"judge": spec.judge, "prompt": prompt_name(spec.prompts), **facts, **said}


def _shown(unusable: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"\n  {row['why']}{_quoted(row)}" for row in unusable[:SHOWN]]
    more = [f"\n  … {len(unusable) - SHOWN:,} more"] if len(unusable) > SHOWN else []
    return "".join([*lines, *more])


def _quoted(row: Mapping[str, Any]) -> str:
    text = " ".join(str(row.get("reply") or "").split())
    return f": {text[:80]}{'…' * (len(text) > 80)}" if text else ""


def _hint(unusable: Sequence[Mapping[str, Any]]) -> str:
    """What is most likely to help."""
    cut = sum("cut" in row["why"] for row in unusable)
    if 2 * cut > len(unusable):
        return "allow longer replies: --set eval.max_tokens=2048"
    if 2 * sum(row["why"].startswith("the server") for row in unusable) > len(unusable):
        return "see the log of the judge's server, and fix what its message names"
    return "see whether the judge follows the prompt, or give another: --judge-prompts FILE"


def rows(node: Node, lengths: Lengths) -> Rows:
    """The answers that are judged, or the mean of the two answers of each pair."""
    if node.spec.judged == "answers":
        return {"rollout": lengths.answers()}
    of = node.inputs[PAIRS if node.spec.judged == "pairs" else ROLLOUTS]
    if isinstance(of, Node):
        return of.declared.rows(of, lengths)
    return {"rollout": _pair_rows(of, node.spec)} if isinstance(of, External) else {}


def _pair_rows(pairs: External, spec: JudgeSpec) -> list[Row]:
    """By the characters of their texts. AdpaError where they are not on this machine."""
    from adpa_cli.hub.externals import pairs_of

    if not pairs.is_here:
        raise AdpaError(f"{pairs.label} is not on this machine")
    return [
        Row(len(question_words(pair.prompt)) / CHARS, (len(pair.chosen) + len(pair.rejected)) / 2 / CHARS)
        for pair in pairs_of(pairs.where, spec.split, spec.limit, spec.skip_bad_rows).items
    ]


def forecast(spec: JudgeSpec, load: Load) -> dict[str, Any]:
    """About what asking takes: `calls` at most, tokens in and out, the `cost` in $ at the price that the runtime has,
    and the difference of win rates that as many prompts find, `detectable`. Nobody is asked."""
    templates, price = read_templates(spec.prompts), load.runtime.judge_price
    turns = spec.judged == "turns"
    calls = load.count if turns else len(ORDERS) * load.count
    asked = sum(len(text) for t in templates for _, text in t.turns) / len(templates) / CHARS
    shown = sum(row.prompt + (1 if turns else 2) * row.answer for row in load.flat) * (calls / max(1, load.count))
    most = spec.max_completion_tokens or spec.max_tokens or LONG
    given = calls * (min(MARK_TOKENS, most) if most <= SHORT else min(EXPLAINED_TOKENS, most))
    tokens = {"prompt_tokens": round(shown + calls * asked), "completion_tokens": given}
    cost = None if price is None else sum(p * n for p, n in zip(price, tokens.values(), strict=True)) / 1e6
    return {"calls": calls, **tokens, "cost": cost, "detectable": None if turns else detectable(load.count)}


def disk(node: Node, load: Load) -> Disk:
    """Of the replies."""
    return Disk(len(ORDERS) * load.count * BYTES_PER_CALL)


def what(node: Node) -> str:
    """Who judges what."""
    of = node.label_of(PAIRS if PAIRS in node.inputs else ROLLOUTS)
    against = f" against {node.label_of(AGAINST)}" if AGAINST in node.inputs else ""
    return f"of {of}{against}, by {node.spec.judge} ({read_templates(node.spec.prompts)[0].name})"


JUDGEMENTS = Stage(
    "judgements", 11, 1, JudgeSpec, "scoring", "judgements", compute, finish, rows, disk,
    memory=lambda node, load: Memory(0, 0), flops=lambda node, load: 0.0, what=what, one_process=True,
    check=check, is_remote=True, set_by="eval",
)  # fmt: skip
STAGES = (JUDGEMENTS,)
