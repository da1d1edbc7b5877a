"""What the page relies on in Gradio, beyond what Gradio documents, and of that what moves between its versions."""

from __future__ import annotations

from ..contract import Contract

GRADIO = Contract(
    "gradio",
    ">=6.31,<6.32",
    (
        # Overridden: every event is checked here, before anything of it is opened, and answered here.
        "gradio.blocks:Blocks.preprocess_data(block_fn, inputs, state, explicit_call)",
        "gradio.blocks:Blocks.process_api(block_fn, inputs, state, ...)",
        # Overridden: which events wait, and which is begun next.
        "gradio.queueing:Queue(live_updates, concurrency_count, update_intervals, max_size, blocks)",
        "gradio.queueing:Queue.push(body, request, username)",
        "gradio.queueing:Queue.get_events()",
        "gradio.queueing:Event",
        "gradio:Blocks.launch(server_name, server_port, share, inbrowser, prevent_thread_lock, quiet, "
        "allowed_paths, max_file_size, state_session_capacity, enable_monitoring, mcp_server, ssr_mode, run_history, "
        "footer_links, css, app_kwargs)",
    ),
)
"""How an event is checked, waits and is answered, and how a page is opened."""
