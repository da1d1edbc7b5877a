"""The page itself, in Gradio."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Any

from ..images import MAX_PIXELS
from ..pruners import Auto
from . import markup
from .choice import LEAST, MAX_METHODS
from .curves import ACCURACY, AXES, categories
from .examples import examples
from .host import GRADIO
from .panels import MAX_SHEETS
from .studio import Studio, Subject

try:
    import gradio as gr
    from starlette.middleware import Middleware  # a dependency of Gradio
    from starlette.middleware.trustedhost import TrustedHostMiddleware
except ImportError as error:
    raise ImportError("the web page needs gradio, which is not installed; pip install 'gprune[app]'") from error

with GRADIO.checked():
    from .guard import LOOPBACK, Closed, Guarded, trusted_names
    from .handlers import Handlers
    from .line import WaitingLine

MAX_FILE_SIZE = "20mb"
SESSIONS = 100
"""Users whose pictures are remembered at once; the one who came first is forgotten first."""
HOUR = 3600
"""Seconds after which the files of uploads and pictures are deleted."""


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
