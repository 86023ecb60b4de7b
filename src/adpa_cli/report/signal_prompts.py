"""What was asked before an answer that a signal is of, while its rollout or its data are where they were."""

from __future__ import annotations

from adpa_cli.errors import AdpaError
from adpa_cli.report.answer_rows import pair_of, parent_answers
from adpa_cli.signal.rows import AnswerKey
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store


def prompt_of(store: Store, manifest: Manifest, key: AnswerKey) -> list[dict[str, str]] | None:
    """The turns {role, content} before an answer of a signal; None where neither answers nor data are found.

    Nothing is downloaded.
    """
    try:
        answers = parent_answers(store, manifest)
        if answers is not None:
            at = answers.find(key.example_id)
            return None if at is None else list(answers.record(at)["prompt"])
        pair = pair_of(store, manifest, key.example_id, "train")
        return None if pair is None else [{"role": turn.role, "content": turn.content} for turn in pair.prompt]
    except (AdpaError, OSError):
        return None
