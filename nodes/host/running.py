"""The node that is running: its id in the graph, the prompt it belongs to, and a line of text on it."""

from __future__ import annotations

from comfy_api.latest import io
from comfy_execution.utils import get_executing_context


def own_id(node: type[io.ComfyNode]) -> str | None:
    """The node's id in the running graph, if its schema asks for `io.Hidden.unique_id`."""
    return node.hidden.unique_id if node.hidden is not None else None


def prompt_id() -> str | None:
    """The id of the queued prompt that is running, or None outside ComfyUI's executor."""
    context = get_executing_context()
    return None if context is None else context.prompt_id


def show_on_node(text: str, node_id: str | None) -> None:
    """Show `text` on the node of this id until its next line, as core's GetImageSize does.

    Nothing happens without an id or outside a server.
    """
    if not node_id:
        return
    from server import PromptServer  # imports the whole web server, which a host without one need not have

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(text, node_id)
