"""The ComfyUI side of TEASR. Only this package imports comfy, and only ComfyUI imports it (relative imports, R2)."""
