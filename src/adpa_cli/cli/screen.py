"""A maker's words on stderr: the plan, a line per finished stage, and one live bar at a terminal, else plain lines."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from adpa_cli.report import text
from adpa_cli.stages.graph import Node
from adpa_cli.stages.plan import Plan
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

EVERY_SECONDS = 60.0
EVERY_SHARE = 0.05


def plan_rows(plan: Plan, store: Store) -> list[tuple[str, ...]]:
    """(number, found|build, stage, what, id) of every stage of a plan."""
    rows: list[tuple[str, ...]] = []
    for n, node in enumerate(plan.nodes(store), 1):
        state = "found" if store.get(node.label) else "build"
        rows.append((str(n), state, node.role, node.what, node.label))
    return rows


def plan_text(plan: Plan, store: Store, width: int) -> str:
    """A plan for a terminal of `width` columns."""
    free = text.human_size(shutil.disk_usage(next(p for p in (store.root, *store.root.parents) if p.exists())).free)
    end = plan.template[1]
    head = f"store {store.root} · template ends {end} · disk free {free}"
    rows = plan_rows(plan, store)
    building = sum(row[1] == "build" for row in rows)
    room = max(20, width - 62)
    lines = [
        f"{n:>2}  {state}  {role:<17}  {text.pad(text.cut(what, room), room)}  {ref}"
        for n, state, role, what, ref in rows
    ]
    tail = f"{building} of {len(rows)} stages to build · time ? · every stage can be interrupted and repeated"
    return "\n".join([head, *lines, *plan.notes, tail])


def plan_tsv(plan: Plan, store: Store) -> str:
    """A plan for a pipe."""
    return text.tsv(plan_rows(plan, store))


class Screen:
    """Shows a plan being carried out. `live` is set at a terminal; the bar is drawn with carriage returns only."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.live = sys.stderr.isatty() and not quiet
        self._head = ""
        self._started = 0.0
        self._last = (0.0, 0.0)
        self._drawn = False

    def say(self, line: str) -> None:
        """One line, above the bar."""
        if self.quiet:
            return
        self._clear()
        encoding = sys.stderr.encoding or "utf-8"
        sys.stderr.write(text.for_encoding(line, encoding) + "\n")
        sys.stderr.flush()

    def start(self, node: Node, n: int, of: int) -> None:
        """A stage begins."""
        self._head = f"[{n}/{of}] {node.role}"
        self._started, self._last = time.monotonic(), (time.monotonic(), 0.0)
        if not self.live:
            self.say(f"{self._head}: {node.what}  {node.label}")
        else:
            self._draw(f"{self._head}: {node.what}")

    def progress(self, step: int, of: int, numbers: Mapping[str, float]) -> None:
        """A stage has done `step` of `of`."""
        share = step / max(of, 1)
        now = time.monotonic()
        shown = "  ".join(f"{name} {value:.4g}" for name, value in _told(numbers))
        left = (now - self._started) / share * (1 - share) if share else 0.0
        words = f"{self._head}  {step}/{of}  {text.human_time(left)} left  {shown}".rstrip()
        if self.live:
            filled = round(20 * share)
            self._draw(f"{'█' * filled}{'░' * (20 - filled)} {words}")
        elif now - self._last[0] >= EVERY_SECONDS or (
            share - self._last[1] >= EVERY_SHARE and now - self._last[0] >= 5
        ):
            self._last = (now, share)
            self.say(f"  {words}")

    def done(self, node: Node, manifest: Manifest, fresh: bool) -> None:
        """A stage is finished, or was there."""
        if fresh:
            seconds = text.human_time(float(manifest.made["seconds"]))
            said = "; ".join(manifest.metrics.get("say", ()))
            line = f"done   {node.label:<27} {node.role:<17} {seconds:>6}  {text.human_size(manifest.size):>8}  {said}"
            self.say(line.rstrip())
            for warning in manifest.metrics.get("watch", ()):
                self.say(f"watch  {warning}")

    def _draw(self, line: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        encoding = sys.stderr.encoding or "utf-8"
        sys.stderr.write("\r" + text.for_encoding(text.pad(text.cut(line, width), width), encoding))
        sys.stderr.flush()
        self._drawn = True

    def _clear(self) -> None:
        if self._drawn:
            sys.stderr.write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")
            self._drawn = False

    def close(self) -> None:
        """Leave a clean line."""
        self._clear()
        sys.stderr.flush()


def _told(numbers: Mapping[str, float]) -> Sequence[tuple[str, Any]]:
    """The loss and the first other numbers."""
    told = [(name, value) for name, value in numbers.items() if name != "grad_norm"]
    return sorted(told, key=lambda number: number[0] != "loss")[:3]
