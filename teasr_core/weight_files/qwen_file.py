"""Qwen-Image transformers from disk: diffusers folders, ComfyUI's files, GGUF; one tensor in memory at a time (T7).

`read_qwen` reads headers alone; `load_qwen_transformer` then builds diffusers' class without memory for its weights
and fills it key by key, so that a trainer can quantise each tensor before the next one comes. A weight that the file
packs is handed out unpacked, or as it is to whoever asks for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import ModelFileError
from ..model.architecture import QwenArchitecture
from .comfy_quantised import FP8, ComfyPacking, comfy_packings, is_side_key
from .file_kind import MARK_2511, Kind, KindOfFile, detect, expect
from .gguf_file import GgufReader, is_gguf
from .lora_file import FINGERPRINT_KEYS
from .packed import PackedTensor, Packing
from .safetensors_reader import TensorInfo, WeightReader

if TYPE_CHECKING:
    from diffusers import QwenImageTransformer2DModel

# What a full checkpoint of ComfyUI holds beside the diffusion model.
COMPANIONS = ("vae.", "first_stage_model.", "text_encoders.", "cond_stage_model.", "conditioner.")
PATCH_SIZE = 2  # of every Qwen-Image; shapes alone do not tell it

# (parameter name, its tensor) -> what the model shall keep in its place, a parameter or not; None: it was taken.
Place = Callable[[str, torch.Tensor], torch.Tensor | None]
# Parameter name -> who takes its weight as the file packs it.
Takers = Mapping[str, Callable[[PackedTensor], None]]


@dataclass(frozen=True)
class QwenSource:
    """A transformer on disk. `shapes` are the parameters' by name, without the file's prefix.

    packings: of the parameters that the file packs, by name; a plain fp8 matrix counts as packed too.
    """

    kind: KindOfFile
    architecture: QwenArchitecture
    shapes: Mapping[str, tuple[int, ...]]
    is_fingerprint_fp8: bool  # the small tensors were rounded too, so the base can no longer be told by them
    prediction: str = "velocity"
    packings: Mapping[str, Packing] = field(default_factory=dict)

    @property
    def stays_packed(self) -> bool:
        """Whether a trainer keeps the weights packed unless told otherwise: GGUF and rotated ones.

        For the formats that it has always read, its plans stay as they were, so that a run resumes bit for bit.
        """
        rotated = (isinstance(packing, ComfyPacking) and packing.rotation > 0 for packing in self.packings.values())
        return bool(self.packings) and (self.kind.layout == "GGUF" or any(rotated))

    @property
    def num_bytes(self) -> tuple[int, int]:
        """(as the file packs its weights, all in bf16) of the parameters."""
        unpacked = {name: 2 * math.prod(shape) for name, shape in self.shapes.items()}
        packed = {name: one.num_bytes for name, one in self.packings.items()}
        return sum((unpacked | packed).values()), sum(unpacked.values())

    def tensors(
        self, dtype: torch.dtype, device: torch.device | str = "cpu", as_packed: Collection[str] = ()
    ) -> Iterator[tuple[str, torch.Tensor | PackedTensor]]:
        """(name, tensor) of every parameter, shard by shard; unpacked, in `dtype`, with memory of its own.

        as_packed: names whose tensors are wanted as the file packs them; they must have a packing.
        Only the tensor handed out is kept: drop it before asking for the next one.
        """
        for path in self.kind.files:
            with _open(path) as file:
                for name in _parameter_names(file.infos, self.kind.prefix):
                    packing = self.packings.get(name)
                    if packing is None:
                        yield name, file.read(self.kind.prefix + name).to(device).to(dtype)
                    elif name in as_packed:
                        yield name, self._packed(file, name, packing, device)
                    else:
                        yield name, self._packed(file, name, packing, device).unpack(dtype)

    def fingerprint_tensors(self) -> dict[str, torch.Tensor]:
        """FINGERPRINT_KEYS as they are stored, for `lora_file.check_base`."""
        found: dict[str, torch.Tensor] = {}
        for path in self.kind.files:
            with _open(path) as file:
                for name in FINGERPRINT_KEYS:
                    if self.kind.prefix + name in file.infos:
                        found[name] = file.read(self.kind.prefix + name)
        return found

    def _packed(
        self, file: WeightReader | GgufReader, name: str, packing: Packing, device: torch.device | str
    ) -> PackedTensor:
        layer = self.kind.prefix + name.removesuffix("weight")
        scales = packing.scales if isinstance(packing, ComfyPacking) else ()
        keys = [self.kind.prefix + name, *(layer + scale for scale in scales)]
        return PackedTensor(packing, tuple(file.read(key).to(device) for key in keys))


def _open(path: Path) -> WeightReader | GgufReader:
    return GgufReader(path) if is_gguf(path) else WeightReader(path)


def _packings(file: WeightReader | GgufReader, prefix: str) -> dict[str, Packing]:
    """By parameter name, of every weight that an open file packs."""
    if isinstance(file, WeightReader):
        return {f"{layer}.weight": packing for layer, packing in comfy_packings(file, prefix).items()}
    names = [name for name in _parameter_names(file.infos, prefix) if prefix + name in file.infos]
    found = {name: file.packing(prefix + name) for name in names}
    return {name: packing for name, packing in found.items() if packing is not None}


def read_qwen(path: Path) -> QwenSource:
    """Read the headers of a transformer. ModelFileError, one line, for anything else than a Qwen-Image transformer."""
    kind = expect(
        detect(path, "transformer"),
        Kind.QWEN_TRANSFORMER,
        "expected a Qwen-Image transformer (diffusers folder, safetensors or GGUF), so give one",
    )
    label = path.name or str(path)
    if kind.storage == "bitsandbytes" or "quantization_config" in kind.config:
        raise ModelFileError(f"{label} was saved quantised by diffusers: give the original, TEASR quantises it itself")
    infos: dict[str, TensorInfo] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    packings: dict[str, Packing] = {}
    for file_path in kind.files:
        with _open(file_path) as file:
            header = file.infos
            packings |= _packings(file, kind.prefix)
        for name in _parameter_names(header, kind.prefix):
            if name in infos:
                raise ModelFileError(f"{label}: '{name}' stands in two shards: the folder mixes two downloads")
            infos[name] = info = header[kind.prefix + name]
            shapes[name] = packings[name].shape if name in packings else info.shape
    is_fp8 = any(infos[name].dtype in FP8 or name in packings for name in FINGERPRINT_KEYS if name in infos)
    architecture = _architecture(shapes, kind.config, label)
    return QwenSource(kind, architecture, shapes, is_fp8, packings=packings)


def load_qwen_transformer(
    source: QwenSource,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    place: Place | None = None,
    prepare: Callable[[nn.Module], None] | None = None,
    takers: Takers | None = None,
) -> QwenImageTransformer2DModel:
    """The transformer, in eval mode, without gradients, built with zero_cond_t=True.

    Args:
        dtype, device: what each tensor is unpacked to, and where.
        place: called as place(name, tensor) on arrival; what it returns becomes the parameter (fp8, a quantised
            tensor, a copy elsewhere), None nothing. The tensor is freed before the next one is read.
        prepare: called with the model while it is still without memory, to replace layers by others of the same name.
        takers: of the weights wanted as the file packs them; `prepare` may still add to it. `place` is not asked.
    Raises ModelFileError before a tensor is read when one is missing, unknown or of another shape.
    """
    model = empty_transformer(source.architecture)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    _check_shapes(source, wanted)
    if prepare is not None:
        prepare(model)
    takers = {} if takers is None else takers
    for name, tensor in source.tensors(dtype, device, takers):
        if isinstance(tensor, PackedTensor):
            takers[name](tensor)
            continue
        layer, _, leaf = name.rpartition(".")
        kept = tensor if place is None else place(name, tensor)
        del tensor
        if kept is not None:
            parameter = kept if isinstance(kept, nn.Parameter) else nn.Parameter(kept, requires_grad=False)
            model.get_submodule(layer)._parameters[leaf] = parameter  # Module.__setattr__ would refuse quantised kinds
            del parameter
        del kept
    return model.eval().requires_grad_(False)


def empty_transformer(architecture: QwenArchitecture) -> QwenImageTransformer2DModel:
    """The class with every parameter on the meta device; its rotary tables, which no file holds, are real."""
    from accelerate import init_empty_weights

    from ..model.qwen_velocity import build_transformer

    with init_empty_weights(include_buffers=False):
        return build_transformer(architecture)


def _parameter_names(keys: Any, prefix: str) -> Iterator[str]:
    """Names of the model's own tensors: what is beside it, and what belongs to another weight, is left out."""
    for key in keys:
        if prefix and key.startswith(COMPANIONS):
            continue
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and (is_side_key(name) or name == MARK_2511):
            continue
        yield name


def _check_shapes(source: QwenSource, wanted: Mapping[str, tuple[int, ...]]) -> None:
    missing = sorted(wanted.keys() - source.shapes.keys())
    unknown = sorted(source.shapes.keys() - wanted.keys())
    wrong = sorted(name for name in wanted.keys() & source.shapes.keys() if wanted[name] != source.shapes[name])
    if missing or unknown or wrong:
        raise ModelFileError(
            f"{source.kind.path.name}: {len(missing)} of {len(wanted)} tensors missing {missing[:2]}, "
            f"{len(unknown)} unknown {unknown[:2]}, {len(wrong)} of another shape {wrong[:2]}: the file is incomplete "
            "or of another architecture, get it again"
        )


def _architecture(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], label: str) -> QwenArchitecture:
    """From shapes; a folder's config.json tells what shapes cannot."""
    try:
        width, head_dim = shapes["img_in.bias"][0], shapes["transformer_blocks.0.attn.norm_q.weight"][0]
        out_channels, text_width = shapes["proj_out.bias"][0], shapes["txt_norm.weight"][0]
    except (KeyError, IndexError) as error:
        raise ModelFileError(f"{label} has no usable {error}: the file is incomplete, get it again") from None
    blocks = {name.split(".")[1] for name in shapes if name.startswith("transformer_blocks.")}
    patch_size = config.get("patch_size", PATCH_SIZE)
    if not isinstance(patch_size, int) or patch_size < 1 or head_dim < 1:
        raise ModelFileError(
            f"{label} has patch_size {patch_size!r} and heads of {head_dim}: expected whole numbers above 0, "
            "get it again"
        )
    # The published models split a head's rotary dimensions 1 : 3.5 : 3.5; a single file does not say.
    axes = config.get("axes_dims_rope") or (head_dim // 8, 7 * head_dim // 16, 7 * head_dim // 16)
    return QwenArchitecture(
        latent_channels=out_channels // patch_size**2,
        num_layers=len(blocks),
        num_heads=width // head_dim,
        head_dim=head_dim,
        rope_axes=tuple(axes) if isinstance(axes, list) else axes,
        text_width=text_width,
        patch_size=patch_size,
    )
