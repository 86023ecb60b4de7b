"""The options of making commands: how one is declared, those that several share, and what was asked with them.

What is shared is declared once, as a field of `Options`, and given to a command by `making`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from adpa_cli.cli.console.complete import Completion, models, of_metavar, tags
from adpa_cli.cli.console.stopping import seconds_of
from adpa_cli.cli.console.streams import GLOBALS
from adpa_cli.endpoint import BASE_URL
from adpa_cli.errors import UsageError
from adpa_cli.running import launchers

if TYPE_CHECKING:
    from adpa_cli.planning.planner import Plan
    from adpa_cli.planning.resolve_inputs import Names
    from adpa_cli.planning.settings import UserSettings
    from adpa_cli.spec import Runtime
    from adpa_cli.store.store import Store

R = TypeVar("R")
WHAT, MUCH, WHERE, AFTER, FIRST = (
    "What",
    "How much",
    "Execution (changes results by rounding at most)",
    "After",
    "Look first",
)
PANELS = (WHAT, MUCH, WHERE, AFTER, FIRST)
FETCH = "--fetch"
"""Of `adpa plan`: downloads what the plan reads."""


def option(
    *names: str,
    help: str,
    panel: str = WHAT,
    metavar: str | None = None,
    completion: Completion | None = None,
    **more: Any,
) -> Any:
    """An option of a command; its values are completed by what its metavar stands for, where nothing else is given.

    `[…]` at the end of `help` is what holds without it, and replaces its default on the screen.
    """
    completion = completion or of_metavar(metavar or "")
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar, autocompletion=completion, **more)


much, where, after = (functools.partial(option, panel=panel) for panel in (MUCH, WHERE, AFTER))
count = functools.partial(much, metavar="N")


def argument(metavar: str, help: str, completion: Completion | None = None) -> Any:
    """An argument of a command, likewise."""
    return typer.Argument(metavar=metavar, help=help, autocompletion=completion or of_metavar(metavar))


Data = Annotated[
    list[str] | None,
    option("--data", help="Preference data; repeat it to concatenate several [the family's].", metavar="SRC"),
]
SftData = Annotated[
    list[str] | None,
    option("--sft-data", help="Dialogues for the fine-tuning before it [the family's].", metavar="SRC"),
]
teacher = functools.partial(option, metavar="MODEL", completion=models(pairs=True))
Teacher = Annotated[str | None, teacher("--teacher", help="The aligned teacher, or a ready pair [the family's].")]
Reference = Annotated[
    str | None, teacher("--reference", help="The model that the teacher was aligned from [the family's].")
]
reward_model = functools.partial(option, "--reward-model", metavar="MODEL", completion=models("reward model"))
SkipBadRows = Annotated[bool, option("--skip-bad-rows", help="Skip rows that cannot be used, broken lines included.")]
IgnoreColumns = Annotated[
    str | None,
    option("--ignore-columns", help="Do not stop because these columns of the data are not read.", metavar="NAME,…"),
]
Columns = Annotated[
    str | None,
    option("--columns", help="Map columns of the data, e.g. prompt=question,chosen=good.",
           metavar="ROLE=NAME,…"),
]  # fmt: skip
Refresh = Annotated[bool, where("--refresh", help="Look up the newest commit of hub models and data again.")]


TEMPLATE_METAVAR = "FILE|NAME"
ChatTemplate = Annotated[
    str | None,
    option("--template", help="Chat template, as a file or by name [the model's].", metavar=TEMPLATE_METAVAR),
]
End = Annotated[str | None, option("--end", help="The token that ends an answer [the template's].", metavar="TOKEN")]
Thinking = Annotated[
    str | None,
    option("--thinking", help="Turn reasoning off, or keep it in the data [the template's].", metavar="off|keep"),
]


@dataclass(frozen=True)
class Options:
    """What making commands take besides their inputs. A command names the fields it has; the rest stay as here."""

    sets: Annotated[
        list[str] | None,
        option("--set", help="Set a parameter, for example gamma=2 or sft.lr=1e-5.", metavar="[STAGE.]KEY=VAL"),
    ] = None
    skip_bad_rows: SkipBadRows = False
    ignore_columns: IgnoreColumns = None
    columns: Columns = None
    template: ChatTemplate = None
    end: End = None
    thinking: Thinking = None
    seed: Annotated[
        int | None,
        count("--seed", help="Random seed (of adpa distill: not for the student's fine-tuning; see --seed-all) [0]."),
    ] = None
    seed_all: Annotated[int | None, count("--seed-all", help="Random seed of every stage.")] = None
    limit: Annotated[int | None, count("--limit", help="Use only the first N rows; the plan says in which stages.")] = (
        None
    )
    max_steps: Annotated[
        int | None, count("--max-steps", help="Stop training after N steps; the plan says in which stages.")
    ] = None
    lr: Annotated[float | None, much("--lr", help="Peak learning rate.", metavar="X")] = None
    epochs: Annotated[float | None, much("--epochs", help="Passes over the data.", metavar="X")] = None
    batch_size: Annotated[int | None, count("--batch-size", help="Rows per optimizer step, over all processes.")] = None
    smoke: Annotated[bool, much("--smoke", help="Try every stage on 64 rows and 4 steps.")] = False
    gpus: Annotated[
        str | None, where("--gpus", help="Number of processes: one per GPU, or sharing the CPU.", metavar="N|all")
    ] = None
    shard: Annotated[
        str | None,
        where("--shard", help="Compute part I of N of what runs in blocks, and no training; for job arrays.",
              metavar="I/N"),
    ] = None  # fmt: skip
    tokens_per_device: Annotated[
        int | None, where("--tokens-per-device", help="Tokens of a micro-batch, padding included.", metavar="N")
    ] = None
    judge_url: Annotated[
        str | None,
        where("--judge-url", help="OpenAI-compatible endpoint of the judge; its key is read from $OPENAI_API_KEY.",
              metavar="URL"),
    ] = None  # fmt: skip
    judge_price: Annotated[
        str | None,
        where("--judge-price", help="Price of the judge in $ per million tokens, for the estimate.", metavar="IN,OUT"),
    ] = None
    base_url: Annotated[
        list[str] | None,
        where(BASE_URL, help="vLLM server that draws the rollouts; repeat it for several at once.", metavar="URL"),
    ] = None
    knobs: Annotated[
        list[str] | None, where("--runtime", help="Set how stages run, for example recompute=true.", metavar="KEY=VAL")
    ] = None
    stop_after: Annotated[
        str | None,
        where("--stop-after", help="Save and exit with 75 after this time, for example 3h50m.", metavar="TIME"),
    ] = None
    no_wait: Annotated[
        bool, where("--no-wait", help="Exit with 4 instead of waiting if another process builds the same.")
    ] = False
    refresh: Refresh = False
    tag: Annotated[str | None, after("--tag", help="Give the result a name.", metavar="NAME", completion=tags)] = None
    select: Annotated[
        str | None, after("--select", help="Which checkpoint becomes the result [last].", metavar="last|best|STEP")
    ] = None
    keep: Annotated[
        str | None,
        after("--keep", help="Keep only the selected checkpoint, or all of them [selected].", metavar="selected|all"),
    ] = None
    dry_run: Annotated[bool, option("--dry-run", "-n", help="Only show the plan.", panel=FIRST)] = False
    yes: Annotated[bool, option("--yes", "-y", help="Do not ask before a large plan.", panel=FIRST)] = False

    def setting(self, **values: Any) -> Options:
        """The same with parameters that have an option of their own; None leaves one as it is."""
        more = [f"{key}={value}" for key, value in values.items() if value is not None]
        return replace(self, sets=[*(self.sets or ()), *more])

    def checked(self) -> Options:
        """The same, after everything that can be checked without reading stdin or a store."""
        from adpa_cli.families import reserved_words
        from adpa_cli.store.store import check_tag

        for name in ("lr", "epochs", "batch_size", "max_steps", "limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} must be above 0; got {value:g}", f"leave {option} out for its default")
        self.given(), self.runtime(look=False)
        if self.tag == "":
            raise UsageError("--tag is empty", "give a name: --tag NAME")
        if self.tag:
            check_tag(self.tag, reserved_words())
        return self

    def given(self) -> UserSettings:
        """What the user said about specs."""
        from adpa_cli.planning.chat_templates import TemplateChoice
        from adpa_cli.planning.settings import UserSettings, parse_sets

        own, by_stage = parse_sets(self.sets or ())
        named = {name: value for name in SETTINGS if (value := getattr(self, name)) is not None}
        templates = TemplateChoice.of(self.template, self.end, self.thinking)
        return UserSettings(
            {**own, **named}, by_stage, self.seed, self.seed_all, self.limit, self.skip_bad_rows, self.smoke, templates,
            tuple(self.base_url or ()),
        )  # fmt: skip

    def check_servers(self) -> None:
        """Raise UsageError for servers of vLLM where no rollout is to be drawn by it."""
        if self.base_url and not self.given().asks_vllm:
            raise UsageError(
                f"{BASE_URL} names servers of vLLM, and the rollouts of this command are not drawn by vLLM",
                "add --set rollout.engine=vllm (adpa rollout: --engine vllm); the address of a judge is --judge-url",
            )

    def runtime(self, look: bool = True) -> Runtime:
        """How to run; without a `look` at the machine, which loads torch, only the words are checked."""
        from adpa_cli.engine.generation.vllm_server import Server
        from adpa_cli.judges.client import Endpoint
        from adpa_cli.planning.settings import NONE, installed_trackers, parse_runtime
        from adpa_cli.spec import Runtime, make

        launchers.refuse_wrappers()
        if self.tokens_per_device is not None and self.tokens_per_device < 1:
            raise UsageError(
                f"--tokens-per-device must be 1 or more; got {self.tokens_per_device}",
                "a row that is longer is computed alone, so 8192 fits most models: --tokens-per-device 8192",
            )
        if self.judge_url is not None:
            Endpoint(self.judge_url)  # refuses what is no URL
        for url in self.base_url or ():
            Server(url)  # likewise
        values = parse_runtime(self.knobs or ())
        index, count = shard_of(self.shard)
        installed_trackers(values.get("trackers", NONE))
        return make(Runtime, {
            "processes": processes(self.gpus, look), "wait": not self.no_wait, "part": (index - 1, count),
            "tokens_per_device": self.tokens_per_device or Runtime().tokens_per_device,
            "judge_url": self.judge_url or "", "judge_price": price_of(self.judge_price),
            "base_urls": tuple(self.base_url or ()),
            "stop_after": None if self.stop_after is None else seconds_of(self.stop_after),
            **values,
        })  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What a making command was asked for: its shared options, and how it plans. `main` carries it out."""

    options: Options
    planned: Callable[[Names, UserSettings], Plan]
    to: Path | None = None
    """The file that the closing table is written to besides."""

    def plan(self, store: Store) -> Plan:
        """Its plan in a store. Raises one error that lists everything of the hub that is not open to us."""
        from adpa_cli import stages
        from adpa_cli.hub.repository import Access
        from adpa_cli.planning.frozen_models import check_whole
        from adpa_cli.planning.planner import rate_notes
        from adpa_cli.planning.resolve_inputs import Names

        words = [word for word in GLOBALS.argv if word not in ("plan", FETCH, "--dry-run", "-n")]
        access = Access(words if words[:1] and words[0] in stages.names() else [])
        with access.checked():
            user = self.options.given()
            plan = self.planned(Names(store, self.options.refresh, access), user)
            check_whole(plan, user, store)
        notes = (*plan.notes, *rate_notes(plan, user, store), *reach_notes(plan, self.options, store))
        return replace(plan, notes=notes, ignored=column_names(self.options.ignore_columns))


def reach_notes(plan: Plan, options: Options, store: Store) -> Iterator[str]:
    """In which of the trainings that are to be made `--limit` and `--max-steps` hold, where it is not in all."""
    from adpa_cli.spec import TrainSpec

    trainings = {
        node.stage: node.spec
        for node in plan.nodes(store)
        if isinstance(node.spec, TrainSpec) and not store.get(node.label)
    }
    for name in ("limit", "max_steps"):
        value = getattr(options, name)
        without = [stage for stage, spec in trainings.items() if getattr(spec, name) is None]
        if value is not None and without and not options.smoke:
            others = [stage for stage in trainings if stage not in without]
            more = " ".join(f"--set {stage}.{name}={value}" for stage in without)
            reached = f" applies to {' and '.join(others)}, and not" if others else " does not apply"
            yield f"--{name.replace('_', '-')} {value}{reached} to {' and '.join(without)}, unless you add {more}"


@functools.cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Options, include_extras=True)


INFERENCE = (
    "sets", "skip_bad_rows", "ignore_columns", "columns", "template", "end", "thinking", "limit", "smoke", "gpus",
    "tokens_per_device", "knobs", "stop_after", "no_wait", "refresh", "tag", "dry_run", "yes",
)  # fmt: skip
"""What every command has that runs a model over data; the model may have to be trained first."""
SETTINGS = ("lr", "epochs", "batch_size", "max_steps", "select", "keep")
"""Options that are settings of a spec by the same name."""
TRAINING = (*INFERENCE, *SETTINGS, "seed")
"""What every command has that trains."""
SHARED = "shard"
"""What the commands have whose work, or the first part of it, several jobs can share."""
RUNNING = tuple(
    name for name, hint in _hints().items()
    if hint.__metadata__[0].rich_help_panel in (WHERE, FIRST) and name != SHARED
)  # fmt: skip
"""What says how to run and never enters an id."""


def making(*names: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Decorate a making command: it gets the named fields of `Options` as options, and their values as `options`."""

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "options"]
        shared = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=_hints()[f.name])
            for f in fields(Options) if f.name in names
        ]  # fmt: skip

        @functools.wraps(function)
        def command(**values: Any) -> R:
            options = Options(**{name: values.pop(name) for name in names}).checked()
            if options.columns is not None:
                values |= renamed(values, options.columns)
            made = function(options=options, **values)
            if isinstance(made, Request):
                made.options.check_servers()
            return made

        return with_parameters(command, sorted([*own, *shared], key=_place))

    return decorate


def renamed(values: Mapping[str, Any], columns: str) -> dict[str, list[str]]:
    """The data sources among the values of a command, with the columns that `--columns` reads under other names."""
    from adpa_cli.data.sources import columns_in, with_columns

    columns_in(columns)
    given = {name: values[name] for name in ("data", "sft_data") if values.get(name)}
    if not given:
        raise UsageError(f"--columns {columns} names columns of --data, which is not given", "add --data SRC")
    return {name: [with_columns(text, columns) for text in texts] for name, texts in given.items()}


def with_parameters(function: Callable[..., R], parameters: Sequence[inspect.Parameter]) -> Callable[..., R]:
    """The function with a signature that a parser reads, all of it by keyword."""
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    vars(function)["__signature__"] = inspect.Signature(parameters)
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function


def _place(parameter: inspect.Parameter) -> int:
    """Panels keep their order whoever declares an option; arguments come first."""
    (info,) = [meta for meta in parameter.annotation.__metadata__ if isinstance(meta, typer.models.ParameterInfo)]
    return PANELS.index(str(info.rich_help_panel)) if info.rich_help_panel else -1


def price_of(text: str | None) -> tuple[float, float] | None:
    """The two numbers of `--judge-price IN,OUT`; UsageError for anything else."""
    if text is None:
        return None
    try:
        into, out = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--judge-price must be two prices, of input and of output; got {text}", "for example --judge-price 2.5,10"
        ) from None
    if not (0 <= into < float("inf") and 0 <= out < float("inf")):
        raise UsageError(f"--judge-price must be 0 or more; got {text}", "for example --judge-price 2.5,10")
    return into, out


def shard_of(text: str | None) -> tuple[int, int]:
    """(I, N) of `--shard I/N`, 1 ≤ I ≤ N; everything without one."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text or "1/1")
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(
            f"--shard must be I/N with I from 1 to N; got {text}", "for example --shard $SLURM_ARRAY_TASK_ID/8"
        )
    return int(match[1]), int(match[2])


def column_names(listed: str | None) -> frozenset[str]:
    """The columns that `--ignore-columns NAME,…` names."""
    return frozenset(name.strip() for name in (listed or "").split(",")) - {""}


def processes(gpus: str | None, look: bool = True) -> int:
    """How many processes `--gpus N|all` asks for, or a launcher has started; without a GPU they share the CPU."""
    started = launchers.place()[1]
    if started > 1 and gpus in (None, "all", str(started)):
        return started
    if started > 1:
        raise UsageError(
            f"--gpus {gpus} is given in one of {started} processes that a launcher has started",
            "leave --gpus out: the launcher says how many there are",
        )
    if gpus is None or (gpus == "all" and not look):
        return 1
    if gpus != "all" and not (gpus.isdigit() and int(gpus)):
        raise UsageError(f"--gpus must be a number from 1, or all; got {gpus}", "--gpus all uses every GPU")
    if not look:
        return int(gpus)
    import torch

    count = torch.cuda.device_count()
    if gpus == "all":
        return max(1, count)
    if torch.cuda.is_available() and int(gpus) > count:
        raise UsageError(f"--gpus {gpus} asks for more GPUs than there are here ({count})", "--gpus all uses every one")
    return int(gpus)
