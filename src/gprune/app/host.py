"""What the page relies on in Gradio, beyond what Gradio documents, and of that what moves between its versions."""

from __future__ import annotations

from ..contract import Contract

GRADIO = Contract(
    "gradio",
    ">=6.31,<6.32",
    (
        # Replaced on one picture, so that gprune opens what was uploaded, and not what Gradio made of it.
        "gradio:Image.preprocess(payload)",
        "gradio.blocks:Blocks.preprocess_data",
        "gradio.data_classes:ImageData(path, ...)",
        "gradio:Blocks.launch(server_name, server_port, share, inbrowser, prevent_thread_lock, quiet, "
        "allowed_paths, max_file_size, state_session_capacity, enable_monitoring, mcp_server, ssr_mode, run_history, "
        "footer_links, css)",
    ),
)
"""How an upload is read, a click is told, and a page is opened."""
