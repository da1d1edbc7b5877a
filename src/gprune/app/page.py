"""The page itself, in Gradio."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import BadValue
from ..images import MAX_PIXELS, open_image, shrunk
from ..pruners import Auto
from . import markup, snippet
from .choice import LEAST, MAX_METHODS, Choice, read
from .curves import ACCURACY, AXES, categories, curve
from .examples import examples
from .groups import grouped
from .host import GRADIO
from .panels import MAX_SHEETS, Drawing
from .studio import MAX_NEW_TOKENS, Studio, Subject

try:
    import gradio as gr
    from pandas import DataFrame  # a dependency of Gradio
    from starlette.middleware import Middleware  # and this
    from starlette.middleware.trustedhost import TrustedHostMiddleware
except ImportError as error:
    raise ImportError("the web page needs gradio, which is not installed; pip install 'gprune[app]'") from error

with GRADIO.checked():
    from .guard import LOOPBACK, Closed, Guarded, trusted_names
    from .line import WaitingLine

MAX_FILE_SIZE = "20mb"
SESSIONS = 100
"""Users whose pictures are remembered at once; the one who came first is forgotten first."""
HOUR = 3600
"""Seconds after which the files of uploads and pictures are deleted."""
WRONG = (ValueError, TypeError, RuntimeError, OSError)
"""What the library raises for input that it cannot use."""


class Handlers:
    """What happens on the page; all that a user has is in the `Subject` of the session."""

    def __init__(self, studio: Studio, max_pixels: int) -> None:
        self.studio = studio
        self.max_pixels = max_pixels
        self.groups = grouped(studio.methods)

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
        choice, number, ignored = read(address, self.studio.methods)
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


def build(studio: Studio, max_pixels: int = MAX_PIXELS) -> gr.Blocks:
    """The page for a model."""
    do = Handlers(studio, max_pixels)
    with Guarded(title="gprune", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as page:
        subject = gr.State(None)  # forgotten an hour after the page is closed
        gr.HTML(markup.header(studio.name), elem_id="header", padding=False)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture = gr.Image(
                    type="filepath",
                    format="png",
                    sources=["upload", "clipboard"],
                    label="Picture",
                    alt_text="The picture that is asked about",
                    height=220,
                    buttons=["fullscreen"],
                    elem_id="picture",
                )
                status = gr.HTML(elem_id="status", padding=False)
                gallery = gr.Gallery(
                    [(each.picture, f"Example: {each.name}, {each.question}") for each in examples()],
                    format="png",
                    show_label=False,
                    columns=5,
                    height="auto",
                    object_fit="contain",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    elem_id="examples",
                )
                question = gr.Textbox(label="Question", max_lines=3, elem_id="question")
                [(few, names), *others] = do.groups.items()
                few = f"{few}, up to {MAX_METHODS} columns"
                groups = [
                    gr.CheckboxGroup(names, value=[Auto.name], label=few, elem_id="methods", elem_classes="chips")
                ]
                with gr.Accordion("More methods", open=False, elem_id="more") as more:
                    groups += [gr.CheckboxGroup(names, label=title, elem_classes="chips") for title, names in others]
                unit = gr.Radio(
                    [("share of the tokens", "share"), ("cover of the picture", "cover")],
                    value="share",
                    label="Budget",
                    info="A cover of 0.9: as few tokens as stand for 90 % of the picture.",
                    elem_id="unit",
                    elem_classes="chips",
                )
                keep = gr.Slider(LEAST, 1, 0.5, step=0.01, label="Keep", elem_id="keep")
                second = gr.Slider(0, 1, 0, step=0.01, label="Beside it, another budget (0: none)", elem_id="second")
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column(scale=5, min_width=300, elem_id="results"):
                gr.HTML(markup.legend(), elem_id="legend", padding=False)
                columns: list[Any] = []
                with gr.Row(elem_id="kept"):
                    for i in range(MAX_METHODS):
                        with gr.Column(min_width=200, visible=i == 0) as column:
                            columns += [column, gr.HTML(elem_id=f"caption-{i}", padding=False)]
                            with gr.Row():
                                columns += [_shown(f"kept-{i}-{number}") for number in range(MAX_SHEETS)]
                answers = gr.HTML(elem_id="answers", padding=False)
        with gr.Tabs():
            with gr.Tab("Graph"):
                iterations = gr.Slider(0, 10, 5, step=1, label="Iterations of G-Prune", elem_id="iterations")
                with gr.Row():
                    with gr.Column(scale=2, min_width=300):
                        with gr.Row():
                            heat = [_shown(f"heat-{number}") for number in range(MAX_SHEETS)]
                        about = gr.HTML(elem_id="patch", padding=False)
                    with gr.Column(scale=1, min_width=300):
                        around = _shown("around", visible=False)
            with gr.Tab("Fidelity"):
                measure = gr.Button("Measure how far the answer stays as it is", elem_id="measure")
                compared = gr.HTML(elem_id="compared", padding=False)
            with gr.Tab("Accuracy"):
                category = gr.Dropdown(categories(), label="Questions of the scenes benchmark", elem_id="category")
                with gr.Row():
                    curves: list[Any] = [
                        gr.LinePlot(
                            x=axis,
                            y=ACCURACY,
                            color="method",
                            y_lim=[0, 100],
                            min_width=300,
                            height=320,
                            buttons=[],
                            elem_id=f"curve-{across}",
                        )
                        for across, axis in AXES.items()
                    ]
                curves.append(gr.HTML(elem_id="uncurved", padding=False))
            with gr.Tab("Code"):
                program = gr.Code(language="python", label="Python", wrap_lines=True, elem_id="python")
                commands = gr.Code(language="shell", label="Command line", wrap_lines=True, elem_id="commands")
                link = gr.Textbox(
                    label="Link to this page",
                    info="What stands after the page's address, in which it is too. An upload is not part of it.",
                    interactive=False,
                    buttons=["copy"],
                    elem_id="link",
                )

        controls = [question, unit, keep, second, *groups]
        chosen = [subject, *controls]
        previews: tuple[Callable[..., Any], Sequence[Any], Sequence[Any]] = (do.preview, chosen, columns)
        heats = (do.heat, [subject, question, iterations], [*heat, around, about])
        codes = (do.code, [subject, iterations, *controls], [program, commands, link])

        # Gradio reads the annotation to know that the place of the click is wanted.
        def look_first(subject: Subject | None, question: str, iterations: int, event: gr.SelectData) -> Any:
            return do.look(0, subject, question, iterations, event.index)

        def look_second(subject: Subject | None, question: str, iterations: int, event: gr.SelectData) -> Any:
            return do.look(1, subject, question, iterations, event.index)

        # The last position of a slider counts, and nobody waits for those before it.
        live: dict[str, Any] = {
            "show_progress": "hidden",
            "trigger_mode": "always_last",
            "concurrency_limit": 8,
            "api_visibility": "private",
        }
        # As it was uploaded, and one at a time: gprune opens it and says what is wrong with it.
        one = {**live, "preprocess": False, "concurrency_limit": 1}
        opened = [
            picture.upload(do.upload, picture, [subject, picture, status], **one),
            picture.clear(lambda: do.upload(None), None, [subject, picture, status], **live),
            gallery.select(do.pick, None, [subject, picture, status, question], **live),
            page.load(do.begin, link, [subject, picture, status, more, *controls], js="() => location.search", **live),
        ]
        for event in opened:
            event.then(lambda: ("", ""), None, [answers, compared], **live)
            event.then(*previews, **live)
            event.then(*heats, **live)
            event.then(*codes, **live)
        ticked = [group.change for group in groups]
        budgets = [unit.change, keep.change, second.change]
        gr.on([*ticked, *budgets, question.blur], *previews, **live)
        gr.on([*ticked, *budgets, question.change, iterations.change], *codes, **live)
        gr.on([page.load, *ticked, category.change], do.curves, [category, *groups], curves, **live)
        link.change(None, link, None, js="address => { history.replaceState(history.state, '', address) }")
        iterations.change(*heats, **live)
        looked = [subject, question, iterations]
        clicked = [look_first, look_second]
        for i, shown in enumerate([image for image in (*columns, *heat) if isinstance(image, gr.Image)]):
            shown.select(clicked[i % MAX_SHEETS], looked, [around, about], **live)
        asked = gr.on(
            [ask.click, question.submit], do.ask, chosen, answers, show_progress="minimal", api_visibility="private"
        )
        asked.then(*previews, **live)
        measure.click(do.fidelity, chosen, compared, show_progress="minimal", api_visibility="private")
    return page


def serve(
    studio: Studio,
    host: str,
    port: int | None,
    *,
    allowed_hosts: Sequence[str] = (),
    max_pixels: int = MAX_PIXELS,
    block: bool = True,
) -> tuple[gr.Blocks, str]:
    """Open the page to the network interface `host`.

    Args:
        studio: of the page.
        host: address to listen at.
        port: to listen at; None is the first free one from 7860 on.
        allowed_hosts: names by which the page may be called, beside `host` and those of this machine.
        max_pixels: that a picture may have.
        block: until it is interrupted or terminated.

    Returns:
        The page and its address; its `close` removes what was uploaded.

    Raises:
        BadValue: one of `allowed_hosts` is no name.
        OSError: the port is taken.
    """
    names = trusted_names(host, allowed_hosts)
    if block:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    first = examples()[0]
    studio.warm_up(Subject(first.picture, first.name))
    page = build(studio, max_pixels).queue(max_size=SESSIONS, api_open=False)
    page._queue = WaitingLine(True, page.max_threads, 1, SESSIONS, page)
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
            allowed_paths=[],
            max_file_size=MAX_FILE_SIZE,
            state_session_capacity=SESSIONS,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            run_history=False,
            footer_links=[],
            css=markup.CSS,
            app_kwargs={
                "middleware": [
                    Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False),
                    Middleware(Closed),
                ]
            },
        )
        print(f"gprune looks at pictures with {studio.name} at {url}", flush=True)
        if host not in LOOPBACK:
            print(f"gprune: no password is asked for; the page answers to {', '.join(names)}", flush=True)
        if block:
            page.block_thread()
    finally:
        if block:
            page.close(verbose=False)
    return page, url


def _filled(drawings: Sequence[Drawing]) -> list[gr.Image]:
    """What `MAX_SHEETS` images become."""
    return [gr.Image(each.picture, label=each.caption, alt_text=each.caption, visible=True) for each in drawings] + [
        gr.Image(None, visible=False)
    ] * (MAX_SHEETS - len(drawings))


def _shown(name: str, visible: bool = True) -> gr.Image:
    return gr.Image(
        format="jpeg",  # written much faster than PNG, and every move of a slider writes up to six
        interactive=False,
        buttons=["fullscreen"],
        visible=visible,
        min_width=150,  # two of them side by side on a phone
        elem_id=name,
        elem_classes="panel",
    )
