"""What happens on the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from pandas import DataFrame  # a dependency of Gradio

from ..errors import BadValue
from ..images import open_image, shrunk
from . import markup, snippet
from .choice import MAX_METHODS, Choice, read_address
from .curves import AXES, curve
from .examples import examples
from .panels import MAX_SHEETS, Drawing
from .picker import method_groups
from .studio import MAX_NEW_TOKENS, Studio, Subject

WRONG = (ValueError, TypeError, RuntimeError, OSError)
"""What the library raises for input that it cannot use."""


class Handlers:
    """What happens on the page; all that a user has is in the `Subject` of the session."""

    def __init__(self, studio: Studio, max_pixels: int) -> None:
        self.studio = studio
        self.max_pixels = max_pixels
        self.groups = method_groups(studio.methods)

    def upload(self, file: dict[str, Any] | None) -> tuple[Subject | None, Any, str]:
        """A new picture, or why it is none; the old one is gone either way."""
        if file is None:
            return None, None, markup.message("Drop a picture, paste one, or pick an example.")
        path = file["path"]
        try:
            return Subject(shrunk(open_image(path, self.max_pixels)), Path(path).name), gr.skip(), ""
        except WRONG as error:
            # Where the server keeps the file is nobody's business.
            return None, None, markup.error(str(error).replace(path, Path(path).name))

    def example(self, number: int) -> tuple[Subject, Any, str, str]:
        """One of the examples and its question.

        Raises:
            BadValue: there is none of this number.
        """
        count = len(examples())
        if number not in range(count):
            raise BadValue(f"example {number!r} is not shown; accepted are 0 to {count - 1}; choose another")
        chosen = examples()[number]
        return Subject(chosen.picture, chosen.name, chosen.origin, number), chosen.picture, "", chosen.question

    def pick(self, event: gr.SelectData) -> tuple[Subject, Any, str, str]:
        """The example that was clicked."""
        return self.example(event.index)

    def begin(self, address: str) -> list[Any]:
        """What the query of the page's address asks for, as `controls` show it, and a word for what of it cannot be."""
        choice, number, ignored = read_address(address, self.studio.methods)
        subject, picture, _, _ = self.example(number)
        words = "".join(markup.error(f"Ignored in the link: {each}") for each in ignored)
        groups = [[name for name in group if name in choice.methods] for group in self.groups.values()]
        more = gr.Accordion(open=any(groups[1:]))
        return [subject, picture, words, more, choice.question, choice.unit, *choice.numbers, *groups]

    def preview(self, subject: Subject | None, *controls: Any) -> list[Any]:
        """Per column: whether it is there, its caption, its pictures."""
        updates: list[Any] = []
        if subject is not None:
            try:
                for panel in self.studio.preview(subject, Choice.of(*controls)):
                    updates += [gr.Column(visible=True), markup.caption(panel), *_filled(panel.pictures)]
            except WRONG as error:
                updates = [gr.Column(visible=True), markup.error(error), *_filled([])]
        empty = [gr.Column(visible=False), "", *_filled([])]
        return updates + empty * (MAX_METHODS - len(updates) // len(empty))

    def code(self, subject: Subject | None, iterations: int, *controls: Any) -> tuple[str, str, str]:
        """The program, the commands, and the query of an address that shows the same."""
        try:
            choice = Choice.of(*controls)
            if subject is None or not choice.columns:
                return "", "", ""
            self.studio.check(choice.methods)
            given = self.studio.name, subject.name, choice
            program = snippet.python(*given, MAX_NEW_TOKENS)
            commands = snippet.commands(*given, int(iterations), MAX_NEW_TOKENS, origin=subject.origin)
        except WRONG:
            return "", "", ""
        return program, commands, choice.address(subject.example)

    def heat(self, subject: Subject | None, question: str, iterations: int) -> list[Any]:
        """The heatmaps; what was said of a patch is no longer true."""
        forgotten = gr.Image(None, visible=False)
        if subject is None:
            return [*_filled([]), forgotten, ""]
        try:
            heats = self.studio.heat(subject, question, int(iterations))
        except WRONG as error:
            return [*_filled([]), forgotten, markup.error(error)]
        return [*_filled(heats), forgotten, markup.message("Click a patch, here or above.")]

    def look(
        self, number: int, subject: Subject | None, question: str, iterations: int, place: Sequence[float]
    ) -> tuple[Any, Any]:
        """The neighbours of the patch that was clicked at a place in a picture of this number."""
        if subject is None:
            return gr.skip(), gr.skip()
        try:
            x, y = map(float, place)
            found = self.studio.look(subject, question, int(iterations), number, (x, y))
        except WRONG as error:
            return gr.skip(), markup.error(error)
        if found is None:
            return gr.skip(), gr.skip()
        return _filled([found.drawing])[0], markup.patch(found)

    def ask(self, subject: Subject | None, *controls: Any) -> Iterator[str]:
        """The answers, as they come."""
        if subject is None:
            yield markup.error("There is no picture; drop one, or pick an example.")
            return
        try:
            for answers in self.studio.ask(subject, Choice.of(*controls)):
                yield markup.answers(answers)
        except WRONG as error:
            yield markup.error(error)

    def fidelity(self, subject: Subject | None, *controls: Any) -> str:
        """How far the answer stays as it is under each method."""
        if subject is None:
            return markup.error("There is no picture; drop one, or pick an example.")
        try:
            choice = Choice.of(*controls)
            return markup.comparison(self.studio.fidelity(subject, choice.question, choice.methods))
        except WRONG as error:
            return markup.error(error)

    def curves(self, category: str, *groups: list[str]) -> list[Any]:
        """The measured curves of the methods, or why there are none."""
        methods = [method for group in groups for method in group]
        try:
            return [*(DataFrame(curve(methods, category, across)) for across in AXES), ""]
        except WRONG as error:
            return [*[None] * len(AXES), markup.error(error)]


def _filled(drawings: Sequence[Drawing]) -> list[gr.Image]:
    """What `MAX_SHEETS` images become."""
    return [gr.Image(each.picture, label=each.caption, alt_text=each.caption, visible=True) for each in drawings] + [
        gr.Image(None, visible=False)
    ] * (MAX_SHEETS - len(drawings))
