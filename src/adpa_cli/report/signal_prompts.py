"""What was asked before an answer that a signal is of, while its rollout or its data are where they were."""

from __future__ import annotations

from typing import Any

from adpa_cli.errors import AdpaError
from adpa_cli.hub.externals import pairs_of
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.report.answer_rows import parent_answers
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
        return _of_pair(store, manifest, key)
    except (AdpaError, OSError):
        return None


def _of_pair(store: Store, manifest: Manifest, key: AnswerKey) -> list[dict[str, str]] | None:
    import numpy as np

    content, spec = manifest.inputs.get("data"), manifest.spec
    facts: Any = manifest.sources.get(str(content))
    if not isinstance(content, str) or facts is None or "template" not in spec:
        return None
    data = Names(store).data_of(facts, content)
    if data.download or not data.is_open:
        return None
    pairs = pairs_of(data.where, "train", spec.get("limit"), bool(spec.get("skip_bad_rows")), spec["template"]).items
    found = np.flatnonzero(pairs.values("id") == np.uint64(int(key.example_id, 16)))
    if not found.size:
        return None
    return [{"role": turn.role, "content": turn.content} for turn in pairs[int(found[0])].prompt]
