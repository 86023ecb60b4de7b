"""A table of wrong command lines: each is refused in plain words, and answered with what to type instead.

The kinds are those that people type: other spellings, other tools' words, options of another command, values that are
not allowed, names that mean something else.
"""

from __future__ import annotations

import re
import shlex

import pytest

from support.cli_samples import Cli

PARSERS_OWN = re.compile(r"Invalid value|Input should be|Value error|Got unexpected|Missing (option|argument)|"
                         r"No such option|requires an argument|does not take a value\.|Traceback|pydantic")  # fmt: skip
"""What the libraries that read command lines would say."""
PLUS = "distill --method adpa+ --student tiny"

# what is typed | what is named | what is answered
COMMANDS = """
list | no command 'list' | adpa show
ls | no command 'ls' | adpa show
ps | no command 'ps' | --help
status | no command | adpa show
info | no command | adpa show
rm best | no command 'rm' | adpa gc
remove best | no command | adpa gc
delete best | no command | adpa gc
prune | no command | adpa gc
train | no command 'train' | adpa distill
fit | no command | adpa distill
finetune | no command | adpa sft
fine-tune | no command | adpa sft
generate | no command | adpa rollout
infer | no command | adpa rollout
predict | no command | adpa rollout
evaluate | no command | adpa eval
test | no command | adpa eval
benchmark | no command | adpa eval
convert | no command | adpa export
push | no command | adpa export
serve | no command | adpa path
fsck | no command | adpa verify
check | no command | adpa verify
rename | no command | adpa tag
doctor | no command | adpa env
sweep | no command | adpa run
download | no command | adpa plan
logs | no command | adpa log
talk | no command | adpa chat
datasets | no command | adpa data
help | no command 'help' | adpa --help
help distill | no command 'help' | adpa distill --help
version | no command 'version' | adpa --version
Distill | no command 'Distill' | adpa distill
SFT | no command 'SFT' | adpa sft
cache_teacher | no command | adpa cache-teacher
dpo_teacher | no command | adpa dpo-teacher
distil | no command | adpa distill
evla | no command | adpa --help
roll-out | no command | adpa rollout
dpo | no command | adpa distill --method dpo --student MODEL
adpa+ | no command | adpa distill --method adpa+
ADPA | no command | adpa distill --method adpa
win-rate | no command | adpa eval REF --suite win-rate
sweep.toml | no command | adpa run sweep.toml
xyzzy | no command 'xyzzy' | adpa --help
--frobnicate | adpa has no option --frobnicate | adpa --help
""".strip().splitlines()
OPTIONS = f"""
sft --student tiny | adpa sft has no option --student | --model tiny
sft --base-model tiny | no option --base-model | --model tiny
sft --model-name-or-path tiny | no option | --model tiny
sft --model tiny --method dpo | no option --method | adpa distill has this option
sft --dataset x.jsonl | no option --dataset | --data x.jsonl
dpo-teacher --model tiny | no option --model | --reference tiny
dpo-teacher --student tiny | no option --student | --reference tiny
rollout --model tiny | no option --model | --student tiny
rollout --student tiny --max-tokens 9 | no option --max-tokens | --max-new-tokens 9
rollout --student tiny --temp 0.5 | no option --temp | --temperature 0.5
eval --model tiny | no option --model | adpa eval tiny
eval tiny --benchmark tiny | no option --benchmark | --suite tiny
eval tiny --baseline tiny | no option --baseline | --against tiny
eval tiny --endpoint http://x | no option --endpoint | --judge-url http://x
distill --model tiny | no option --model | --student tiny
{PLUS} --fetch | no option --fetch | adpa plan distill --method adpa+ --student tiny --fetch
{PLUS} --gamma 3 | no option --gamma | --set gamma=3
{PLUS} --gamma=3 | no option --gamma | --set gamma=3
{PLUS} --learning-rate 3 | no option --learning-rate | --lr 3
{PLUS} --learning_rate 3 | no option --learning_rate | --lr 3
{PLUS} --num-train-epochs 3 | no option | --epochs 3
{PLUS} --per-device-train-batch-size 3 | no option | --batch-size 3
{PLUS} --max_steps 3 | no option --max_steps | --max-steps 3
{PLUS} --steps 3 | no option --steps | --max-steps 3
{PLUS} --max-samples 3 | no option | --limit 3
{PLUS} --num-gpus 3 | no option | --gpus 3
{PLUS} --bf16 | no option --bf16 | --set dtype=bfloat16
{PLUS} --lora-rank 8 | no option | --set lora=16
{PLUS} --compile true | no option --compile | --runtime compile=true
{PLUS} --rollout.temperature 1 | no option | --set rollout.temperature=1
{PLUS} --output-dir out | no option --output-dir | --store out
{PLUS} --name best | no option --name | --tag best
{PLUS} --resume | no option --resume | same command again
{PLUS} --xyzzy 3 | no option --xyzzy | adpa distill --help
{PLUS} --sed 3 | no option --sed | --seed 3
{PLUS} --Seed 3 | no option --Seed | --seed 3
{PLUS} --student-model x | no option | --student x
{PLUS} --ref-model x | no option | --reference x
{PLUS} --dryrun | no option | --dry-run
{PLUS} -method dpo | no option -method | --method dpo
{PLUS} --seed | --seed has no value | --seed N
{PLUS} --seed --lr 3 | --seed has no value | --seed VALUE
{PLUS} --smoke=3 | --smoke takes no value | --smoke
{PLUS} extra | adpa distill does not take 'extra' | adpa distill --help
{PLUS} a b | does not take 'a b' | repeat it
show --tag best | adpa show has no option --tag | have this option
show --gamma 3 | no option --gamma | adpa show --help
data tiny-pairs --head 3 | no option --head | --rows 3
data tiny-pairs --limit 3 | no option --limit | have this option
export best out --overwrite | no option --overwrite | --force
env extra | does not take 'extra' | adpa env --help
models tiny | does not take 'tiny' | adpa models --help
sft | --model is missing | adpa sft --model
dpo-teacher | --reference is missing | adpa dpo-teacher --reference
cache-teacher | --teacher is missing | adpa cache-teacher --teacher
rollout | --student is missing | adpa rollout --student
distill --student tiny | --method is missing | adpa distill --method
distill --method adpa+ | --student is missing | adpa distill --student
eval | adpa eval needs the model | adpa eval REF
run | RECIPE.toml is missing | adpa run
import | adpa import needs FILE | adpa import --help
import x | adpa import needs --format FORMAT | adpa import --help
path | adpa path needs REF | adpa path --help
export | adpa export needs REF | adpa export --help
export best | adpa export needs DIR | adpa export --help
data | adpa data needs SRC | adpa data --help
log | adpa log needs REF | adpa log --help
plan | adpa plan needs the command | adpa plan distill
plan show | adpa plan cannot plan 'show' | distill
plan distil | adpa plan cannot plan 'distil' | distill
chat | one or two models | adpa chat REF
chat a b c | one or two models; got 3 | adpa chat REF
chat tiny | needs a terminal | adpa chat tiny - <
verify --repair | --repair needs the artifact | adpa verify REF --repair
verify --teacher x | have no effect without --repair | --repair
""".strip().splitlines()
VALUES = f"""
{PLUS} --limit many | --limit must be a whole number; got many | --limit N
{PLUS} --limit=many | --limit must be a whole number; got many | --limit N
{PLUS} --limit 1.5 | --limit must be a whole number; got 1.5 | --limit N
{PLUS} --limit 0 | --limit must be above 0; got 0 | --limit
{PLUS} --limit -3 | --limit must be above 0; got -3 | --limit
{PLUS} --lr x | --lr must be a number; got x | --lr X
{PLUS} --lr 0 | --lr must be above 0; got 0 | --lr
{PLUS} --lr -1 | --lr must be above 0; got -1 | --lr
{PLUS} --epochs 0 | --epochs must be above 0 | --epochs
{PLUS} --batch-size 0 | --batch-size must be above 0 | --batch-size
{PLUS} --max-steps 0 | --max-steps must be above 0 | --max-steps
{PLUS} --seed x | --seed must be a whole number; got x | --seed N
{PLUS} --seed -1 | seed must be between 0 and | seed
{PLUS} --gpus 0 | --gpus must be a number from 1, or all; got 0 | --gpus all
{PLUS} --gpus x | --gpus must be a number from 1, or all; got x | --gpus all
{PLUS} --tokens-per-device 0 | --tokens-per-device must be 1 or more; got 0 | 8192
{PLUS} --stop-after 3 | --stop-after must be a time with its unit; got 3 | 3h50m
{PLUS} --stop-after soon | --stop-after must be a time | 90s
{PLUS} --select foo | select must be last, best, or the number | select
{PLUS} --keep some | keep must be one of selected, all; got some | keep=
{PLUS} --states foo | states must be one of student, chosen, rejected, teacher; got foo | states=
{PLUS} --states Chosen | states must be one of | did you mean states=chosen?
{PLUS} --tag d16b | d16b looks like an id | run-d16b
{PLUS} --tag tiny | tiny is a built-in name | my-tiny
{PLUS} --tag a/b | 'a/b' cannot be a tag | my-model
eval tiny --judge-price 3 | --judge-price must be two prices | 2.5,10
{PLUS} --set gamma | --set takes KEY=VALUE; got 'gamma' | --set gamma=2
{PLUS} --set gama=2 | --set gama: distill has no such setting | did you mean gamma?
{PLUS} --set gama=2 | --set gama | gamma=1.0
{PLUS} --set Gamma=2 | --set Gamma | did you mean gamma?
{PLUS} --set gamma=-1 | gamma must be between 0 and 1000; got -1 | gamma
{PLUS} --set gamma=much | gamma must be a finite number; got much | gamma=
{PLUS} --set lr=0 | lr must be above 0; got 0 | lr
{PLUS} --set dtype=float16 | dtype must be one of float32, bfloat16; got float16 | dtype=
{PLUS} --set dtype=BFLOAT16 | dtype must be one of | did you mean dtype=bfloat16?
{PLUS} --set nosuch.lr=1 | there is no stage 'nosuch' | stages: sft
{PLUS} --set SFT.lr=1 | there is no stage 'SFT' | did you mean sft?
{PLUS} --set skip_bad_rows=maybe | skip_bad_rows must be true or false; got maybe | true
{PLUS} --set rollout.temprature=1 | rollout has no such setting | did you mean temperature?
{PLUS} --set temperature=1 | distill has no such setting | --set rollout.temperature=
{PLUS} --runtime recomputed=true | there is no such key | did you mean recompute?
{PLUS} --runtime recompute | KEY=VALUE | recompute=false
distill --method ADPA+ --student tiny | no method 'ADPA+' | did you mean adpa+?
distill --method DPO --student tiny | no method 'DPO' | did you mean dpo?
distill --method adpaplus --student tiny | no method 'adpaplus' | did you mean adpa+?
distill --method vanilla_kd --student tiny | no method | did you mean vanilla-kd?
distill --method xyz --student tiny | no method 'xyz' | All methods: adpa
methods ADPA | no method 'ADPA' | did you mean adpa?
methods adpaa | no method 'adpaa' | did you mean adpa?
cache-teacher --teacher tiny --support foo | support must be one of topk, sampled; got foo | support=
cache-teacher --teacher tiny --precision foo | precision must be a number of nats | 1/32
cache-teacher --teacher tiny --top-k x | --top-k must be a whole number; got x | --top-k K
rollout --student tiny --split dev | --split must be train or test; got dev | train
rollout --student tiny --temperature hot | --temperature must be a number; got hot | --temperature T
data tiny-pairs --split dev | --split must be train or test; got dev | train
data tiny-pairs --rows x | --rows must be a whole number; got x | --rows N
data tiny-pairs --rows -1 | --rows must be 0 or more; got -1 | --rows
data tiny-pairs --max-length 0 | --max-length must be 1 or more; got 0 | --max-length
eval tiny --split dev | --split must be test, train or all; got dev | test
show x --row x | --row must be a whole number; got x | --row N
export x out --to foo | --to must be one of hf, ollama, gguf | adpa export --help
export x out --to HF | --to must be one of hf, ollama, gguf | did you mean --to hf?
export x out --dtype int8 | --dtype must be one of float32, bfloat16, float16; got int8 | adpa export --help
import x --format foo | --format must be one of distillkit, top-logprobs | adpa import --help
import x --format Distillkit | --format must be one of | did you mean --format distillkit?
gc --days -1 | --days must be 0 or more; got -1 | --days N
gc --days x | --days must be a number; got x | --days N
gc best | does not say whether to keep or to remove it | adpa gc --keep best
models --card foo | --card | adpa models --card 24
run x --shard 9/8 | --shard must be I/N with I from 1 to N; got 9/8 | --shard
chat tiny - --temperature -1 | --temperature must be 0 (greedy) or more; got -1 | --temperature
chat tiny - --max-new-tokens 0 | --max-new-tokens must be 1 or more; got 0 | --max-new-tokens
""".strip().splitlines()
NAMES = """
distill --method dpo --student TINY | --student TINY | did you mean tiny?
distill --method dpo --student tinny | --student tinny | did you mean tiny?
distill --method dpo --student sft | --student sft | sft@latest
distill --method dpo --student sft@last | --student sft@last | sft@latest
distill --method dpo --student Llama-3.2-1b | --student Llama-3.2-1b | did you mean llama-3.2-1b
distill --method dpo --student abc | there is no tag or id abc | an id needs 4 digits
distill --method dpo --student xyzzy | there is no tag or id xyzzy | adpa show
sft --model nosuch | there is no tag or id nosuch | for a hub model, write ORG/NAME; adpa show
sft --model ./nosuch | nosuch | org/name
sft --model tiny --data nosuch.jsonl | nosuch.jsonl | path
sft --model tiny --data mydata | mydata | ./mydata
run nosuch.toml | nosuch.toml | adpa run RECIPE.toml
""".strip().splitlines()


def parts(line: str) -> tuple[list[str], str, str]:
    """The words that are typed, what the answer names, and what it tells to type."""
    typed, named, answer = (part.strip() for part in line.split(" | "))
    return shlex.split(typed), named, answer


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with a command line is found before anything is built."""
    monkeypatch.setattr("adpa_cli.cli.console.make.execute", lambda *_: pytest.fail("work was begun"))


@pytest.mark.parametrize(
    ("line", "code"),
    [*((line, 2) for line in (*COMMANDS, *OPTIONS, *VALUES)), *((line, 3) for line in NAMES)],
)  # fmt: skip
def test_a_wrong_line_is_named_and_answered(cli: Cli, line: str, code: int) -> None:
    words, named, answer = parts(line)
    said, _, tried = cli.refused(code, *words).partition("\ntry: ")
    assert named in said
    assert answer in tried
    assert not PARSERS_OWN.search(said + tried)


def test_the_table_is_large_and_has_no_line_twice() -> None:
    lines = [*COMMANDS, *OPTIONS, *VALUES, *NAMES]
    assert len(set(lines)) == len(lines) >= 150


@pytest.mark.parametrize("word", ["xyzzy", "distribute", "store"])
def test_nothing_is_suggested_where_nothing_is_near(cli: Cli, word: str) -> None:
    assert "did you mean" not in cli.refused(2, word)


def test_an_answer_of_the_parser_is_one_json_line_when_asked(cli: Cli) -> None:
    ran = cli("sft", "--student", "tiny", "--json")
    assert (ran.code, ran.out) == (2, "")
    assert '"hint": "did you mean --model tiny?' in ran.err
