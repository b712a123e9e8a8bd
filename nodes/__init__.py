"""The ComfyUI side of TEASR. Only this package imports comfy; it is imported by ComfyUI alone (R2: relative imports)."""
