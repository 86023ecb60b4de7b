"""The `adpa` command: the one place that turns exceptions into exit codes.

No module imported here loads torch, transformers, datasets or accelerate: `--help` must answer at once.
"""

from __future__ import annotations

import errno
import os
import sys

import typer
from typer.exceptions import TyperException

from adpa_cli.cli.console.app import program, run_words
from adpa_cli.cli.console.mistyped import usage_error
from adpa_cli.cli.console.options import Request
from adpa_cli.cli.console.streams import (
    GLOBALS,
    fail,
    nobody_reads,
    open_closed,
    say,
    stdin_of,
    take_globals,
    take_text,
)
from adpa_cli.disk import is_forbidden, unreadable
from adpa_cli.errors import AdpaError, NotFound
from adpa_cli.running import launchers


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code. Bugs show their traceback, everything else a message."""
    open_closed()
    take_text()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        check_folder()
        try:
            result = run_words(take_globals(words) or ["--help"])
            if isinstance(result, Request):
                from adpa_cli.cli.console.make import make

                make(result)
        except launchers.Several as several:
            return go_on(several)
    except AdpaError as error:
        return fail(error)
    except typer.Exit as exit_:
        return int(exit_.exit_code)
    except typer.Abort:
        return 130
    except TyperException as error:
        return fail(usage_error(error, words, program()))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return nobody_reads()
    except SystemExit as leaving:  # how the parser passes a closed pipe on
        if isinstance(leaving.__context__, BrokenPipeError):
            return nobody_reads()
        raise
    except OSError as error:
        if (explained := _environment_error(error)) is None:
            raise
        return fail(explained)
    return result if isinstance(result, int) else 0


def _environment_error(error: OSError) -> AdpaError | None:
    """What to say of a disk or a user's rights; None for what is a bug."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        name = f": {error.filename}" if error.filename else ""
        return AdpaError(
            f"the disk is full{name}", "free some space and type the same command again; it continues where it stopped"
        )
    if is_forbidden(error):
        return unreadable(error.filename, error.strerror)
    if error.errno == errno.ENOENT and "temporary directory" in str(error):  # tempfile's words
        return AdpaError(
            f"no folder for temporary files: {error.strerror}", "name one where you may write: export TMPDIR=DIR"
        )
    return None


def check_folder() -> None:
    """Raise NotFound where the working folder was deleted: libraries break off in one without a word to a user."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise NotFound("the working folder no longer exists", 'go to another one: cd "$HOME"') from error


def go_on(several: launchers.Several) -> int:
    """Run the same command in several processes, which are given what came through the pipe; its exit code."""
    with stdin_of(GLOBALS.piped):
        return launchers.launch(GLOBALS.typed, several)


def run() -> None:
    """The console script, in each of the processes that a launcher started."""
    name_files_in_utf8()
    try:
        os.environ.update(launchers.slurm_as_torch(os.environ))
    except AdpaError as error:
        sys.exit(fail(error))
    rank, count = launchers.place()
    if count == 1:
        sys.exit(main())
    from adpa_cli.running import processes

    launchers.leave_with_the_launcher()
    if rank:
        processes.serve()
    processes.ignore_the_end_of_others()
    code = main()
    processes.end()
    leave(code)


def leave(code: int) -> None:
    """End this process, the first of several, whatever its threads and theirs are doing."""
    say(launchers.leave_code(code))
    sys.stdout.flush()
    os._exit(code)


def name_files_in_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding: libraries open files by UTF-8 names.

    What is shown stays in the encoding of the locale.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding if sys.stdout is not None else "ascii")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
