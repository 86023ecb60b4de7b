"""Go the whole way with the real model of `real_pair.py`, one command after the other, and check it by other means.

    python examples/real_chain.py ./real

What is fed is compared with the tokenizers library and the published template, log-probs and logits with the
transformers library. Everything is made in a new store, ./real/adpa-store. With 2 cores it takes about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from adpa_cli.engine.models import load_checked

END, ASKED = "<|im_end|>", "What is the capital of France?"
OWN_RULES = {"role": "system", "content": "You are a helpful AI assistant named SmolLM, trained by Hugging Face"}
BOTH = ("--limit", "16", "--set", "max_length=256")
"""What reads models computes in their default, float16."""
TRAINING = (*BOTH, "--set", "dtype=float32", "--batch-size", "16", "--epochs", "4", "--lr", "1e-5")
ANSWERS = ("--set", "rollout.max_new_tokens=32")
MOST = 1 / 5
"""Of the advantage its error may be: docs/precision.md."""


@dataclass
class Report:
    """What was made and checked, as the lines of a table."""

    lines: list[tuple[str, str, float]] = field(default_factory=list)

    def add(self, what: str, outcome: str, seconds: float = math.nan) -> None:
        """One line; it is also shown at once."""
        self.lines.append((what, outcome, seconds))
        print(f"  {what}: {outcome}", file=sys.stderr, flush=True)

    def text(self) -> str:
        """The table."""
        wide = max(len(what) for what, _, _ in self.lines)
        times = ("" if math.isnan(seconds) else f"{seconds:.0f} s" for _, _, seconds in self.lines)
        rows = zip(self.lines, times, strict=True)
        return "\n".join(f"{what:<{wide}}  {took:>5}  {outcome}".rstrip() for (what, outcome, _), took in rows)


class Commands:
    """`adpa` as it is typed in one folder."""

    def __init__(self, folder: Path, report: Report) -> None:
        self.folder, self.report = folder, report

    def said(self, *words: str, stdin: str = "") -> tuple[str, float]:
        """What a command prints, and its seconds. Raises SystemExit where it fails; its progress is shown."""
        print("$ adpa " + " ".join(words), file=sys.stderr, flush=True)
        start, environment = (
            time.perf_counter(),
            {**os.environ, "ADPA_STORE": str(self.folder / "adpa-store"), "HF_HUB_OFFLINE": "1"},
        )
        done = subprocess.run(
            [sys.executable, "-m", "adpa_cli", *words], cwd=self.folder, env=environment, input=stdin, text=True,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"error: adpa {words[0]} ended with {done.returncode}")
        return done.stdout, time.perf_counter() - start

    def made(self, what: str, *words: str) -> str:
        """The id of what a command makes."""
        out, seconds = self.said(*words)
        made = out.split()[-1]
        self.report.add(what, f"{made}  {self.outcome(made)}".rstrip(), seconds)
        return made

    def path(self, made: str) -> Path:
        """The folder of an artifact."""
        return Path(self.said("path", made)[0].strip())

    def outcome(self, made: str) -> str:
        """What a training's losses were. Raises SystemExit unless they are finite and fall."""
        log = self.folder / "adpa-store" / made / "metrics.jsonl"
        if not log.exists():
            return ""
        losses = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
        check(all(map(math.isfinite, losses)) and losses[-1] < losses[0], f"the losses of {made}: {losses}")
        return f"loss {losses[0]:.4f} → {losses[-1]:.4f}"


def check(fine: bool, what: str) -> None:
    """Raise SystemExit with what is wrong."""
    if not fine:
        raise SystemExit(f"error: {what}")


def written(turns: Sequence[dict[str, str]], ask: bool) -> str:
    """What the published template of SmolLM2 writes, without a template."""
    whole = [*([] if turns[0]["role"] == "system" else [OWN_RULES]), *turns]
    text = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}{END}\n" for turn in whole)
    return text + ("<|im_start|>assistant\n" if ask else "")


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check_ids(adpa: Commands) -> dict[tuple[str, str], dict[str, Any]]:
    """What `adpa data` shows, by id and side: all ids are those of the tokenizers library for the written text."""
    tokenizer = Tokenizer.from_file(str(adpa.folder / "base" / "tokenizer.json"))
    check(tokenizer.encode("1984").tokens == ["1", "9", "8", "4"], "digits are not cut one by one")
    every = {}
    for name, more in (("pairs.jsonl", ()), ("dialogues.jsonl", ("--sft",))):
        out, _ = adpa.said("data", name, "--model", "./base", "--rows", "1000", "--json", *more)
        given = rows(adpa.folder / name)
        for shown in json.loads(out)["shown"]:
            row = given[shown["row"] - 1]
            if shown["side"]:
                turns = [{"role": "user", "content": row["prompt"]}]
                first, whole = written(turns, ask=True), written(turns, ask=True) + row[shown["side"]] + END
            else:  # both answers are trained, so the first trained token follows the first question
                first = written(row["messages"][:-3], ask=True)
                whole = written(row["messages"], ask=False).removesuffix("\n")
            wanted, start = tokenizer.encode(whole).ids, len(tokenizer.encode(first).ids)
            check(shown["ids"] == wanted, f"{name} row {shown['row']} is fed as {shown['ids']}, not as {wanted}")
            check(shown["trained_from"] == start, f"{name} row {shown['row']} is trained from {shown['trained_from']}")
            every[shown["id"], shown["side"]] = shown
    adpa.report.add("data", f"ids of {len(every)} rows equal those of tokenizers.Tokenizer.from_file")
    return every


@torch.no_grad()
def logps(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """Log-probs [T, V] for each token of an answer, by the transformers library."""
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1)


def loaded(folder: Path) -> tuple[Any, Any]:
    """The model and the tokenizer of a folder, by the transformers library alone."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def check_start(adpa: Commands, shown: dict[tuple[str, str], dict[str, Any]]) -> None:
    """The log-probs that DPO starts from are those of the base model in the transformers library."""
    model, _ = loaded(adpa.folder / "base")
    apart = 0.0
    for kept in pq.read_table(adpa.path("start-logps@latest") / "logps.parquet").to_pylist()[:8]:
        row = shown[kept["example_id"], kept["part"]]
        prompt, answer = row["ids"][: row["trained_from"]], row["ids"][row["trained_from"] :]
        theirs = logps(model, prompt, answer).gather(-1, torch.tensor(answer)[:, None])[:, 0]
        apart = max(apart, float((theirs - torch.tensor(kept["logps"])).abs().max()))
    check(apart < 1e-3, f"log-probs of answers are {apart:.2g} nats off")
    adpa.report.add("start log-probs", f"within {apart:.1g} nats of transformers")


def check_signal(adpa: Commands, rollouts: str, signal: str, teacher: Path) -> None:
    """The stored advantage is what the transformers library says of the same answers in float32, but for an error."""
    answers = pq.read_table(adpa.path(rollouts) / "rows-00000.parquet").to_pylist()
    adpa.said("export", signal, "./exported-signal")
    (file,) = (adpa.folder / "exported-signal").glob("*.parquet")
    stored = {row["example_id"]: row for row in pq.read_table(file).to_pylist()}
    (aligned, _), (reference, _) = loaded(teacher), loaded(adpa.folder / "base")
    found, wanted = [], []
    for answer in answers[:4]:
        row = stored[answer["id"]]
        ids = torch.tensor(row["ids"])
        theirs = [logps(model, answer["prompt_ids"], answer["answer_ids"]) for model in (aligned, reference)]
        wanted.append((theirs[0] - theirs[1]).gather(-1, ids).flatten())
        found.append(torch.tensor(row["difference"]).flatten())
    both = torch.stack([torch.cat(found), torch.cat(wanted)])
    rms, error = float(both[1].square().mean().sqrt()), float((both[0] - both[1]).square().mean().sqrt())
    check(error < MOST * rms, f"the stored advantage of {rms:.3g} nats is {error:.3g} off")
    alike = float(torch.corrcoef(both)[0, 1])
    adpa.report.add("signal", f"advantage of {rms:.3g} nats, {error:.2g} off float32 (correlation {alike:.3f})")


def check_export(adpa: Commands, model: str) -> None:
    """An exported folder gives the logits, ids and answers in the transformers library that it gives here."""
    _, seconds = adpa.said("export", model, "./exported", "--to", "hf")
    theirs, tokenizer = loaded(adpa.folder / "exported")
    core = Tokenizer.from_file(str(adpa.folder / "base" / "tokenizer.json"))
    turns = [{"role": "user", "content": ASKED}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    check(prompt == core.encode(written(turns, ask=True)).ids, f"transformers cuts the prompt into {prompt}")
    ours = load_checked(adpa.path(model))
    with torch.no_grad():
        both = [each(input_ids=torch.tensor([prompt])).logits for each in (theirs, ours)]
    apart = float((both[0] - both[1]).abs().max())
    check(apart < 1e-5, f"the logits of the exported folder are {apart} apart")
    drawn = theirs.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False)[0, len(prompt) :].tolist()
    check(tokenizer.decode(drawn[-1:]) == END, f"generation does not stop: {tokenizer.decode(drawn)}")
    said, chatting = adpa.said("chat", model, "-", "--max-new-tokens", "64", stdin=ASKED + "\n")
    check(said.strip() == tokenizer.decode(drawn[:-1]).strip(), f"chat answers {said!r}")
    check("Paris" in said, f"it answers {said!r}")
    adpa.report.add("export hf", f"logits in transformers within {apart:.1g}, the same prompt ids", seconds)
    adpa.report.add("chat", f"{said.strip()}  (as transformers, ends with {END})", chatting)


def chain(adpa: Commands) -> None:
    """Every command, each given what those before it made."""
    data = ("--data", "./pairs.jsonl")
    shown = check_ids(adpa)
    adpa.made("sft", "sft", "--model", "./base", "--data", "./dialogues.jsonl", *TRAINING)
    teacher = adpa.made("dpo-teacher", "dpo-teacher", "--reference", "./base", *data, *TRAINING)
    check_start(adpa, shown)
    adpa.said("export", teacher, "./teacher")
    signal = adpa.made("cache-teacher", "cache-teacher", "--teacher", "./teacher", *data, *BOTH)
    student = ("--student", "./base", "--no-eval", *TRAINING)
    dckd = adpa.made("distill dckd", "distill", "--method", "dckd", "--cache", signal, *data, *student)
    rollouts = adpa.made("rollout", "rollout", "--student", dckd, *data, *BOTH, "--max-new-tokens", "32")
    judges = ("--teacher", "./teacher", "--reference", "./base")
    on_rollouts = adpa.made("cache-teacher, pair", "cache-teacher", *judges, "--rollouts", rollouts, *BOTH)
    check_signal(adpa, rollouts, on_rollouts, adpa.folder / "teacher")
    student = ("--student", dckd, "--no-eval", *TRAINING)
    adpa_ = adpa.made("distill adpa", "distill", "--method", "adpa", "--cache", on_rollouts, *student)
    adpa.made("eval", "eval", adpa_, "--against", "./base", *judges, *data, *BOTH, *ANSWERS)
    check_export(adpa, adpa_)
    _, seconds = adpa.said("export", adpa_, "./exported-ollama", "--to", "ollama")
    lines = (adpa.folder / "exported-ollama" / "Modelfile").read_text(encoding="utf-8")
    check(END in lines and OWN_RULES["content"] in lines, f"the Modelfile has another template: {lines}")
    adpa.report.add("export ollama", "its Modelfile has the published template", seconds)
    whole = ("--student", "./base", *judges, *data, *TRAINING, *ANSWERS)
    again = adpa.made("adpa+ at once", "distill", "--method", "adpa+", *whole)
    check(again == adpa_, f"one command makes {again}, the single ones made {adpa_}")
    adpa.said("show", adpa_)
    verified = adpa.said("verify")[0].splitlines()
    check(all(line.endswith("\twhole") for line in verified), f"not whole: {verified}")
    adpa.report.add("verify", f"{len(verified)} artifacts are whole")


def main(arguments: Sequence[str] | None = None) -> int:
    """Go the whole way in a folder; the table goes to stdout."""
    parser = argparse.ArgumentParser(description="Go through every command with a real model, and check the outcome.")
    parser.add_argument("folder", type=Path, help="what real_pair.py made")
    folder = parser.parse_args(arguments).folder.resolve()
    for name in ("adpa-store", "teacher", "exported", "exported-ollama", "exported-signal"):
        shutil.rmtree(folder / name, ignore_errors=True)
    logging.disable_progress_bar()
    report = Report()
    chain(Commands(folder, report))
    print(report.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
