"""The tiny ODTSR in ComfyUI: its files in ComfyUI's folders, the graph's wires, and a loader for whole prompts."""

import importlib
import shutil
from types import SimpleNamespace

import pytest
import torch

from helpers.comfy.upscale_run import add_node, executor, upscale_prompt  # noqa: F401, fixtures

LORA = "odtsr_on_the_shelf.safetensors"


@pytest.fixture(scope="module")
def tiny():
    """`helpers.tiny.odtsr`, which needs diffusers."""
    pytest.importorskip("diffusers", reason="diffusers is not installed in this environment: pip install diffusers")
    return importlib.import_module("helpers.tiny.odtsr")


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    return tiny.write_files(tmp_path_factory.mktemp("odtsr"))


@pytest.fixture
def files(host, made, tmp_path, shelf):
    """The files in ComfyUI's folders: the LoRA in `loras`, the second encoder in a folder of `vae`."""
    (tmp_path / "vae" / "sub").mkdir(parents=True)
    host.folder_paths.add_model_folder_path("vae", str(tmp_path / "vae"))
    shutil.copy(made.lora, shelf / LORA)
    encoder = shutil.copy(made.encoder, tmp_path / "vae" / "sub" / made.encoder.name)
    host.folder_paths.filename_list_cache.clear()
    yield SimpleNamespace(lora=shelf / LORA, encoder=tmp_path / "vae" / "sub" / made.encoder.name, vae=made.vae)
    shutil.rmtree(tmp_path / "vae")
    host.folder_paths.filename_list_cache.clear()
    assert encoder


@pytest.fixture
def graph(host, tiny, files, unet_loader, ours):
    """model, conditioning and VAE as the graph has them."""
    from comfy.sd import VAE
    from comfy.utils import load_torch_file

    base = unet_loader("odtsr_base.safetensors", tiny.base())
    model, conditioning = host.run("TEASRApplyLoRA", model=base, lora_name=LORA)
    vae = VAE(sd=load_torch_file(str(files.vae)), dtype=torch.float32)
    return SimpleNamespace(base=base, model=model, conditioning=conditioning, vae=vae)


@pytest.fixture
def assets():
    """The built-in model, which the executor's fixture asks for and which is not used here."""


@pytest.fixture
def photo(tiny):
    """What the executor's own source gives; `restored` brings its pictures itself."""
    return tiny.image("one tile")


@pytest.fixture
def restored(tiny, graph, executor, add_node):  # noqa: F811
    """restored(image, region, **inputs): what TEASRUpscale makes of an IMAGE at its own size, without colour fix."""
    run, shown = executor(), []

    def load(index):
        return graph.model, graph.vae, graph.conditioning, *shown[index]

    add_node("TestLoader", ("MODEL", "VAE", "CONDITIONING", "IMAGE", "MASK"), {"index": ("INT", {})}, load)

    def restore(image, region=None, **inputs):
        shown.append((image, region))
        values = {"size.scale": 1.0, "steps": 1, "seed": tiny.SEED, "color_fix": "off"} | inputs
        wires = dict(zip(("model", "vae", "conditioning", "image", "region"), range(5), strict=True))
        if region is None:
            del wires["region"]
        prompt = upscale_prompt(builtin=False, **values)
        prompt["in"] = {"class_type": "TestLoader", "inputs": {"index": len(shown) - 1}}
        prompt["up"]["inputs"] |= {name: ["in", output] for name, output in wires.items()}
        found = run(prompt)
        assert not run.errors
        return found

    return restore


@pytest.fixture
def condition(host, tiny, graph):
    """condition(tiles, **inputs): TEASRCondition's outputs for the picture of so many tiles, at its own size."""

    def run(tiles, **inputs):
        wires = {"vae": graph.vae, "conditioning": graph.conditioning, "model": graph.model, **inputs}
        return host.run("TEASRCondition", image=tiny.image(tiles), size={"size": "factor", "scale": 1.0}, **wires)

    return run


@pytest.fixture
def normalised(graph):
    """normalised(samples): a LATENT's samples as the model sees them, (B, C, h, w)."""
    return lambda samples: graph.model.get_model_object("latent_format").process_in(samples)[:, :, 0]
