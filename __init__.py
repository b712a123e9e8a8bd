"""TEASR for ComfyUI: any-step diffusion super-resolution. Imports wait for ComfyUI: pytest imports this file too."""

# Folder that ComfyUI serves under /extensions/<folder of the pack>: the nodes' help pages, docs/<node id>.md.
WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI's V3 entry point; called once, after ComfyUI itself is imported."""
    from .nodes.extension import TeasrExtension

    return TeasrExtension()
