"""A line of text on a node, as core's GetImageSize shows it. It stays until the node's next line."""

from __future__ import annotations

from comfy_api.latest import io


def show_on_node(text: str, node_id: str | None) -> None:
    """Show `text` on the node of this id in the graph; nothing without an id or outside a server."""
    if not node_id:
        return
    from server import PromptServer  # pulls in the whole web server, which a host without one need not have

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(text, node_id)


def own_id(node: type[io.ComfyNode]) -> str | None:
    """The node's id in the running graph, where its schema asks for `io.Hidden.unique_id`."""
    return node.hidden.unique_id if node.hidden is not None else None
