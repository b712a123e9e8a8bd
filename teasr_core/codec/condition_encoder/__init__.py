"""The built-in model's condition encoder: it repairs the low-quality image's latent before the transformer sees it."""
