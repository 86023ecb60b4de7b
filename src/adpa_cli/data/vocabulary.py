"""Whether a teacher's answers mean the same to a student: their id -> token maps, compared entry by entry."""

from __future__ import annotations

from typing import Any

from adpa_cli.errors import AdpaError

SHOWN = 3


def compare(teacher: Any, student: Any) -> tuple[str, ...]:
    """Remarks on two tokenizers that agree on every id of the student.

    Embeddings may be padded beyond the vocabulary; only the maps are compared. Raises AdpaError that names the first
    ids that differ.
    """
    theirs, ours = ({id_: token for token, id_ in each.get_vocab().items()} for each in (teacher, student))
    different = [id_ for id_ in sorted(ours) if theirs.get(id_) != ours[id_]]
    if different:
        listed = "".join(
            f"\n  id {id_}: teacher {_token(theirs, id_)}, student {_token(ours, id_)}" for id_ in different[:SHOWN]
        )
        message = f"teacher and student differ in {len(different)} of {len(ours)} ids of the vocabulary{listed}"
        raise AdpaError(message, "choose a teacher of the student's family: adpa models")
    more = sorted(set(theirs) - set(ours))
    if not more:
        return (f"one vocabulary of {len(ours)} tokens",)
    named = ", ".join(repr(theirs[id_]) for id_ in more[:SHOWN]) + (", …" if len(more) > SHOWN else "")
    return (f"{len(more)} ids only the teacher has ({named}): their probability counts as mass outside",)


def _token(names: dict[int, str], id_: int) -> str:
    return repr(names[id_]) if id_ in names else "has none"
