"""`adpa chat`."""

from __future__ import annotations

from typing import Annotated

import typer


def chat(
    refs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REF [REF]", help="Who answers; - reads one prompt a line [required].", show_default=False
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="Said before the conversation.", metavar="TEXT", show_default=False)
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.", metavar="X")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Per answer.", metavar="N")] = 512,
    seed: Annotated[int, typer.Option("--seed", help="Of the sampling.", metavar="N")] = 0,
) -> None:
    """Talk to a model with its own chat template, or to two side by side. Nothing is built for it.

    adpa chat best · adpa chat best distill/51c0 · adpa chat best - < prompts.txt > answers.txt

    With - each line is a prompt of its own; one line per answer goes to stdout (a column per model, line breaks as
    spaces; --json keeps them). Ctrl-C stops an answer, Ctrl-D leaves; /reset starts again, /quit leaves.
    """
    import sys

    from adpa_cli.cli import talking
    from adpa_cli.cli.descriptors import ids_only
    from adpa_cli.cli.streams import GLOBALS, quiet_libraries, say
    from adpa_cli.errors import UsageError
    from adpa_cli.stages.names import Names
    from adpa_cli.stages.trained import trained
    from adpa_cli.store.store import Store

    models = [ref for ref in refs or () if ref != "-"]
    piped = len(models) < len(refs or ())
    if not 1 <= len(models) <= 2:
        raise UsageError(f"chat takes one or two models, not {len(models)}", "adpa chat REF [REF], see adpa show")
    if not piped and not (sys.stdin is not None and sys.stdin.isatty()):
        raise UsageError("chat talks at a terminal, and stdin is none", f"adpa chat {' '.join(models)} - < prompts")
    talking.check(temperature, max_new_tokens)
    prompts = talking.read_prompts() if piped else []
    names = Names(Store.find_or_empty(GLOBALS.store))
    found = [trained(names, text, lambda line: say(f"{line}\n")) for text in models]
    quiet_libraries()
    asked = talking.Asked(system, temperature, max_new_tokens, seed)
    if not piped:
        raise typer.Exit(talking.converse(found, asked))
    with ids_only() as output:
        talking.answer_all(found, prompts, asked, output.line)
