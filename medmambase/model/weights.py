"""The networks' files: our folder of ``model.safetensors`` and ``config.json``, and the checkpoints
of MedMamba and the notebook.

Nothing is ever unpickled with code. Last stop before: ``network.py``.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medmambase.config import ConfigError, ModelConfig, Preprocessing
from medmambase.files import write_bytes

FORMAT = 1


class WeightsError(Exception):
    """A file of weights that cannot be used; the message names the file, what is wrong and what
    would do."""


def write_folder(folder: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write both files, each beside its place and then moved there, so that a kill leaves the old
    or the new one."""
    from safetensors.torch import save

    plain = {key: t.detach().cpu().contiguous() for key, t in tensors.items()}
    text = json.dumps({"format": FORMAT, **description}, indent=2, ensure_ascii=False) + "\n"
    for name, content in (("model.safetensors", save(plain)), ("config.json", text.encode("utf-8"))):
        write_bytes(folder / name, content)


def read_folder(folder: Path) -> tuple[dict[str, Tensor], ModelConfig, tuple[str, ...], Preprocessing]:
    """Tensors, architecture, classes and preprocessing. Raises WeightsError."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / "config.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        if description.get("format") != FORMAT:
            raise WeightsError(f"{path}: format is {description.get('format')!r}; this version reads format {FORMAT}")
        config = ModelConfig.from_dict(description["model"])
        classes, preprocessing = tuple(description["classes"]), Preprocessing.from_dict(description["preprocessing"])
        if len(classes) != config.num_classes:
            raise WeightsError(
                f"{path}: contradicts itself: {len(classes)} classes are named, and num_classes is "
                f"{config.num_classes}; restore the file"
            )
        if preprocessing.channels != config.in_chans:
            raise WeightsError(
                f"{path}: contradicts itself: channels is {preprocessing.channels}, and in_chans is "
                f"{config.in_chans}; restore the file"
            )
        path = folder / "model.safetensors"
        return load(path.read_bytes()), config, classes, preprocessing
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: not there; a network's folder holds model.safetensors and config.json") from error
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        SafetensorError,
    ) as error:  # ConfigError is a ValueError
        raise WeightsError(f"{path}: cannot be read ({error})") from error


def fill(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load tensors that must match exactly. Raises WeightsError naming the first that does not."""
    own = network.state_dict()
    for key in sorted(own.keys() | tensors.keys()):
        if key not in tensors or key not in own:
            raise WeightsError(f"{source}: {key} is {'missing' if key not in tensors else 'not part of this network'}")
        if own[key].shape != tensors[key].shape:
            raise WeightsError(
                f"{source}: {key} has shape {tuple(tensors[key].shape)}; its config.json wants {tuple(own[key].shape)}"
            )
    network.load_state_dict(tensors)


# Upstream's names and ours, in order of application. Shapes that differ (A_logs, Ds, the 1x1
# convolution) only need a view.
_RENAMED = [
    (r"^patch_embed\.", "embedding."),
    (r"^layers\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.merging."),
    (r"^layers\.", "stages."),
    (r"\.ln_1\.", ".ssm_norm."),
    (r"\.self_attention\.", ".ssm_branch."),
    (r"\.ssm_branch\.x_proj_weight$", ".ssm_branch.x_proj"),
    (r"\.ssm_branch\.dt_projs_weight$", ".ssm_branch.dt_weight"),
    (r"\.ssm_branch\.dt_projs_bias$", ".ssm_branch.dt_bias"),
    (r"\.ssm_branch\.A_logs$", ".ssm_branch.A_log"),
    (r"\.ssm_branch\.Ds$", ".ssm_branch.D"),
    (r"\.ssm_branch\.conv2d\.", ".ssm_branch.conv."),
    (r"\.ssm_branch\.out_norm\.", ".ssm_branch.norm."),
    (r"\.conv33conv33conv11\.", ".conv_branch."),
    (r"\.finalconv11\.", ".mix."),
    (r"\.se\.fc\.0\.weight$", ".se.squeeze"),
    (r"\.se\.fc\.2\.weight$", ".se.excite"),
]


def renamed(key: str) -> str:
    """Our name for an upstream parameter."""
    for pattern, replacement in _RENAMED:
        key = re.sub(pattern, replacement, key)  # type: ignore[call-overload]  # a string or a function, as re.sub takes
    return key


def read_upstream(source: Path | str | Mapping[str, Any]) -> tuple[dict[str, Tensor], ModelConfig]:
    """An upstream checkpoint's tensors under their own names, and the architecture that their
    shapes tell. Raises WeightsError."""
    name = "the mapping" if isinstance(source, Mapping) else str(source)
    content = source if isinstance(source, Mapping) else _read_file(Path(source))
    for wrapper in ("model", "state_dict", "model_state_dict"):
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = {
        key.removeprefix("module."): torch.as_tensor(value) for key, value in content.items() if hasattr(value, "shape")
    }
    try:
        return tensors, _architecture(tensors)
    except KeyError as error:
        raise WeightsError(
            f"{name}: no tensor {error.args[0]!r}; this is not a MedMamba or MedMambaSE notebook checkpoint"
        ) from error
    except (ConfigError, WeightsError, IndexError) as error:
        raise WeightsError(f"{name}: {error}; this is not a MedMamba or MedMambaSE notebook checkpoint") from error


def read_start(path: Path) -> tuple[dict[str, Tensor], ModelConfig]:
    """Tensors to start a training from and their architecture: of a network's own folder
    (``best/``, or a file in it), or ``read_upstream``.

    Raises WeightsError.
    """
    folder = path.parent if path.name == "model.safetensors" and (path.parent / "config.json").is_file() else path
    if not folder.is_dir():
        return read_upstream(path)
    if (folder / "best").is_dir():
        raise WeightsError(f"{folder}: is the folder of a run; give one of its networks, {folder / 'best'} say")
    tensors, config, _, _ = read_folder(folder)
    return tensors, config


def _read_file(path: Path) -> Mapping[str, Any]:
    if path.is_dir():
        raise WeightsError(
            f"{path}: is a folder; MedMambaSE.load reads a network's folder, and a file of weights is wanted here"
        )
    try:
        if path.suffix == ".npz":
            import numpy as np

            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            return load(path.read_bytes())
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or type(error).__name__})") from error
    # torch.load raises pickle, zip, end-of-file and runtime errors alike, and advises to unpickle
    # with code
    except Exception as error:
        kind = {".npz": "NumPy archive", ".safetensors": "safetensors file"}.get(
            path.suffix, "PyTorch checkpoint of tensors alone"
        )
        raise WeightsError(
            f"{path}: is no {kind}, or is damaged; give a network's state_dict() as torch.save writes it, or "
            f".safetensors"
        ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}; a dictionary of tensors is wanted")
    return content


def _architecture(tensors: Mapping[str, Tensor]) -> ModelConfig:
    depths: dict[int, int] = {}
    for key in tensors:
        if match := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", key):
            depths[int(match[1])] = max(depths.get(int(match[1]), 0), int(match[2]) + 1)
    first = "layers.0.blocks.0."
    norm_first = tensors[first + "conv33conv33conv11.0.weight"].dim() == 1
    mixed, se = first + "finalconv11.weight" in tensors, tensors.get(first + "se.fc.0.weight")
    if norm_first == mixed:
        raise WeightsError("its conv branch belongs to one network and its channel mixing to another")
    dims = tuple(len(tensors[f"layers.{stage}.blocks.0.self_attention.Ds"]) // 4 for stage in sorted(depths))
    return ModelConfig(
        num_classes=len(tensors["head.weight"]) if "head.weight" in tensors else 1000,
        in_chans=tensors["patch_embed.proj.weight"].shape[1],
        block="notebook"
        if mixed and se is not None
        else "medmamba_v0"
        if mixed
        else "medmambase"
        if se is not None
        else "medmamba",
        depths=tuple(depths[stage] for stage in sorted(depths)),
        dims=dims,
        state=tensors[first + "self_attention.A_logs"].shape[1],
        se_reduction=16 if se is None else dims[0] // len(se),
        se_hidden_min=1,
        se_scale=None if se is None else 1.0,
    )


def fill_upstream(network: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """Load what fits from an upstream checkpoint and give an account. Raises WeightsError if
    nothing but new keys would remain."""
    own = network.state_dict()
    matched: dict[str, Tensor] = {}
    skipped = []
    for theirs, t in tensors.items():
        ours = renamed(theirs)
        target = own.get(ours)
        if target is not None and ours == "embedding.proj.weight" and t.dim() == 4 and t.shape[1] != target.shape[1]:
            t = (
                t.sum(1, keepdim=True).expand(-1, target.shape[1], -1, -1) / target.shape[1]
            )  # a grey image is the same image three times
        if target is not None and t.numel() == target.numel() and _same_but_ones(t, target):
            matched[ours] = t.reshape(target.shape).to(target.dtype)
        else:
            wanted = (
                "this network has no such parameter"
                if target is None
                else f"shape {tuple(t.shape)}, this network has {tuple(target.shape)}"
            )
            skipped.append(f"{theirs} ({wanted})")
    new = sorted(own.keys() - matched.keys())
    if not matched:
        raise WeightsError("no parameter matched")
    network.load_state_dict(matched, strict=False)
    return "\n".join(
        [
            f"{len(matched)} keys matched, {len(skipped)} skipped, {len(new)} new",
            *(f"skipped: {k}" for k in skipped),
            *(f"new: {k}" for k in new),
        ]
    )


def _same_but_ones(theirs: Tensor, ours: Tensor) -> bool:
    """Upstream joins (direction, channel) into one axis and keeps a 1x1 kernel's axes: the same
    numbers in the same order."""
    joined = (ours.shape[0] * ours.shape[1], *ours.shape[2:]) if ours.dim() > 1 else None
    return tuple(theirs.shape) in (tuple(ours.shape), joined, (*ours.shape, 1, 1))
