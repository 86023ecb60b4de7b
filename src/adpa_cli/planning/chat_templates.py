"""Which chat template and end token hold for a model: its own, or what `--template`, `--end` and `--thinking` say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adpa_cli.data.rendering import RULES, Thinking, answer_end, behind_answer, left_out, thinking_of, with_thinking
from adpa_cli.data.templates import TEMPLATES, Template
from adpa_cli.data.tokenizer import added_tokens
from adpa_cli.errors import DataError, NotFound, UsageError
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.machine import expanded


@dataclass(frozen=True)
class TemplateChoice:
    """What a user says of chat templates; empty where nothing is said."""

    template: Template | None = None
    end: str = ""
    thinking: Thinking | None = None

    @staticmethod
    def of(template: str | None, end: str | None, thinking: str | None) -> TemplateChoice:
        """From the words of the three options. Raises UsageError and NotFound."""
        rule = next((rule for rule in RULES if rule == thinking), None)
        if thinking is not None and rule is None:
            raise UsageError(f"--thinking must be {' or '.join(RULES)}; got {thinking!r}", "--thinking off")
        if end == "":
            raise UsageError("--end is empty", "name a token: --end TOKEN")
        named = read_template(template) if template is not None else None
        return TemplateChoice(named, end or "", rule)

    def __bool__(self) -> bool:
        return self != TemplateChoice()

    def applied(self, template: Template, names: Mapping[str, str]) -> Template:
        """A template that a model has, with what was said of the end token and of thinking."""
        return Template(with_thinking(template.text, names, self.thinking), self.end or template.end)

    def agrees(self, template: Template) -> bool:
        """Whether a template that something was made with is what the user says."""
        if self.template is not None and not template.text.endswith(self.template.text):
            return False
        ruled = thinking_of(template.text) or self.thinking
        return self.end in ("", template.end) and self.thinking in (None, ruled)


NO_CHOICE = TemplateChoice()


def read_template(word: str) -> Template:
    """The template that a word means: a name, a file, or a text with Jinja in it. Raises UsageError and NotFound."""
    if word in TEMPLATES:
        return TEMPLATES[word]
    if "{%" in word or "{{" in word:
        return Template(word)
    path = expanded(word)
    if not path.is_file():
        raise NotFound(
            f"--template {word} is neither a file nor the name of a template", f"names: {', '.join(sorted(TEMPLATES))}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--template {word} is not a text file in UTF-8 ({error.reason})", "name a file with a Jinja chat template"
        ) from None
    if not text.strip():
        raise UsageError(f"--template {word} is an empty file", "name a file with a Jinja chat template")
    return Template(text)


def template_in(folder: Path, choice: TemplateChoice) -> Template | None:
    """The chat template of a model folder, or the one that was named for it; None where there is none.

    Its end is the token that the template writes after an answer, whatever the tokenizer calls its EOS. Raises
    UsageError where the template writes none, or no answer at all.
    """
    model = ModelFolder.of(folder)
    own = "" if choice.template else model.template
    given = choice.template or (Template(own) if own else None)
    if given is None:
        return None
    # Templates that end answers with the EOS end them with the token that was named for that.
    names = {**model.named, **({"eos_token": choice.end} if choice.end else {})}
    try:
        lost = left_out(given.text, names)
        end = answer_end(given.text, names, added_tokens(ModelFolder.of(folder).texts.path)) or given.end
    except DataError as error:
        raise UsageError(
            f"the chat template of {folder.name} cannot be used: {error.message}", "give another: --template FILE|NAME"
        ) from error
    if lost:
        raise UsageError(
            f"the chat template of {folder.name} is broken: it does not write the text of the {lost}",
            "give another: --template FILE|NAME",
        )
    if choice.end and end not in ("", choice.end):
        raise UsageError(
            f"--end {choice.end} contradicts the chat template of {folder.name}, which ends an answer with {end}",
            f"leave out --end, or give a template that ends answers with {choice.end}: --template FILE|NAME",
        )
    if not (end or choice.end):
        raise UsageError(
            f"the chat template of {folder.name} does not end an answer with a token of the tokenizer; it writes "
            f"{behind_answer(given.text, names)!r} after the answer",
            "name the token that ends answers: --end TOKEN, or give another template: --template FILE|NAME",
        )
    return choice.applied(Template(given.text, end), names)
