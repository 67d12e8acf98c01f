"""Read and write a network's weights: our own folder of ``model.safetensors`` and ``config.json``,
and the checkpoints of MedMamba and of the MedMambaSE notebook.

Nothing is ever unpickled with code. A tensor that a network cannot take, or misses, is an error
that names it: a network that is partly untrained predicts as confidently as any other.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mode
from typing import Any

import torch
from torch import Tensor, nn

from medmambase.config import AnyConfig, Block, ConfigError, ModelConfig, OpponentConfig, Preprocessing, network_config
from medmambase.files import no_folder, read_json, write_bytes
from medmambase.model import tensor_file
from medmambase.model.layers import has_se
from medmambase.run_folder import DESCRIPTION, WEIGHTS
from medmambase.validation import check

FORMAT = 1
_HEAD = (("head.weight", 2), ("head.bias", 1))
_WHOLE = "give the checkpoint of one whole network as it was saved"
_TOGETHER = "the two files of a network belong together: restore both"


class WeightsError(Exception):
    """A file of weights cannot be used; the message names the file, what is wrong and what to
    do."""


def write_folder(folder: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write both files, each beside its place and then moved there, so that a kill leaves the old
    or the new one. Raises WeightsError where a file has the folder's name."""
    if folder.exists() and not folder.is_dir():
        raise WeightsError(f"{folder}: {no_folder(folder)}; move it away, or give another name")
    text = json.dumps({"format": FORMAT, **description}, indent=2, ensure_ascii=False) + "\n"
    for name, content in ((WEIGHTS, tensor_file.as_bytes(tensors)), (DESCRIPTION, text.encode("utf-8"))):
        write_bytes(folder / name, content)


def not_ours(folder: Path, config: OpponentConfig) -> WeightsError:
    """The error where MedMambaSE is wanted, and ``folder`` holds an opponent."""
    return WeightsError(
        f"{folder}: holds {config.opponent}, and MedMambaSE is wanted here; Predictor.load takes both, and "
        f"medmambase-train --model {config.opponent} trains one"
    )


def read_folder(folder: Path) -> tuple[dict[str, Tensor], AnyConfig, tuple[str, ...], Preprocessing]:
    """Read a network's folder: tensors, architecture, classes and preprocessing. Raises
    WeightsError."""
    from safetensors import SafetensorError

    path = folder / DESCRIPTION
    if not folder.is_dir():
        raise WeightsError(f"{folder}: {no_folder(folder)}; give a network's folder, such as runs/data-001/best")
    try:
        description = read_json(path)
        if description.get("format") != FORMAT:
            raise WeightsError(f"{path}: format is {description.get('format')!r}; this version reads format {FORMAT}")
        config = network_config(description["model"])
        classes = tuple(check("classes", description["classes"], list[str], ConfigError))
        preprocessing = Preprocessing.from_dict(description["preprocessing"])
        if len(classes) != config.num_classes:
            raise WeightsError(
                f"{path}: contradicts itself: {len(classes)} classes are named, and num_classes is "
                f"{config.num_classes}; restore the file"
            )
        if len(set(classes)) < len(classes):
            raise WeightsError(f"{path}: two classes have the same name; restore the file")
        if preprocessing.channels != config.in_chans:
            raise WeightsError(
                f"{path}: contradicts itself: channels is {preprocessing.channels}, and in_chans is "
                f"{config.in_chans}; restore the file"
            )
        path = folder / WEIGHTS
        tensors = tensor_file.from_bytes(tensor_file.read_bytes(path))
        if isinstance(config, ModelConfig):
            check_size(folder / DESCRIPTION, config, tensors, f"{WEIGHTS} holds")
        return tensors, config, classes, preprocessing
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: there is no such file; give a network's folder, such as RUN/best") from error
    # ConfigError is a ValueError.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error


def check_size(path: Path, config: ModelConfig, tensors: Mapping[str, Tensor], holds: str) -> None:
    """Raise WeightsError where ``config``, from the file ``path``, describes a far larger network
    than that of the tensors: to build it could fill the memory. ``holds``: what has the tensors,
    and the verb."""
    blocks, held = sum(config.depths), sum(t.numel() for t in tensors.values())
    if config.num_classes > held:  # each has a name and, where there is a head, a weight
        raise WeightsError(
            f"{path}: describes a network of {config.num_classes} classes, and {holds} {held} weights; "
            f"{_TOGETHER if path.name == DESCRIPTION else 'restore it'}"
        )
    halves = [(depth, width // 2) for depth, width in zip(config.depths, config.dims, strict=True)]
    least = sum(depth * half * (half + config.state) for depth, half in halves)
    if blocks > len(tensors) or least + sum(config.gate_widths()) > held:
        raise WeightsError(
            f"{path}: describes a network of {blocks} blocks and at least {least} weights, and {holds} {held}; "
            f"{_TOGETHER if path.name == DESCRIPTION else 'restore it'}"
        )


def fill(network: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Load tensors that must match exactly. Raises WeightsError naming the first that does not."""
    own, whole = network.state_dict(), _TOGETHER
    for key in sorted(own.keys() | tensors.keys()):
        wanted, found = (tuple(each[key].shape) if key in each else None for each in (own, tensors))
        if found is None and key.startswith("head."):
            whole = "a network saved with features_only=True is loaded so, too"
        if wanted is None or found is None:
            how = f"is missing, of shape {wanted}" if found is None else f"of shape {found} is not part of this network"
            raise WeightsError(f"{folder / WEIGHTS}: {key} {how}; {whole}")
        if wanted != found:
            raise WeightsError(f"{folder / WEIGHTS}: {key} has shape {found}; config.json wants {wanted}; {whole}")
        _check_values(str(folder / WEIGHTS), key, tensors[key], own[key])
    network.load_state_dict(tensors)


def _check_values(source: str, key: str, t: Tensor, own: Tensor) -> None:
    """Raise WeightsError for a tensor that cannot become ``own``: of whole or complex numbers where
    others are wanted, or with NaN or infinity, with which its network would predict."""
    if own.is_floating_point() and not t.is_floating_point():
        raise WeightsError(f"{source}: {key} is {t.dtype}; it must be {own.dtype}; restore the file")
    if bad := tensor_file.not_finite(t):
        raise WeightsError(
            f"{source}: {key} holds {bad} values that are no finite numbers, of {t.numel()}; restore the file, or take "
            f"another network"
        )


# Upstream's names and ours, in order of application. Shapes that differ (``_upstream_shape``) only
# need a view.
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
    """Read an upstream checkpoint: its tensors under their own names, and the architecture that
    their shapes tell. Raises WeightsError."""
    name = "the mapping" if isinstance(source, Mapping) else str(source)
    content: Mapping[Any, Any] = source if isinstance(source, Mapping) else read_file(Path(source))
    for wrapper in ("model", "state_dict", "model_state_dict"):
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    named = {key.removeprefix("module."): value for key, value in content.items() if isinstance(key, str)}
    tensors = {key: _tensor(value, f"{name}: {key}") for key, value in named.items() if hasattr(value, "shape")}
    try:
        return tensors, _architecture(tensors)
    except (KeyError, ConfigError, WeightsError) as error:
        what = f"no tensor {error.args[0]!r}" if isinstance(error, KeyError) else error
        raise WeightsError(f"{name}: {what}; this is not a MedMamba or MedMambaSE notebook checkpoint") from error


def _tensor(value: Any, name: str) -> Tensor:
    """Take an array of NumPy's or a tensor as a tensor."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError) as error:  # text, dates, numbers of another byte order
        raise WeightsError(f"{name} is an array of {value.dtype}; floating-point numbers are wanted") from error


def read_file(path: Path) -> Mapping[str, Any]:
    """Read what a file of weights holds, without unpickling code. Raises WeightsError."""
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
            return tensor_file.from_bytes(tensor_file.read_bytes(path))
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
    """The network that the shapes of upstream's tensors tell.

    Each figure is read where all blocks can contradict one: a tensor that is not as the others want
    it is found, and named, when the network is filled.
    """
    numbered = (re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", key) for key in tensors)
    blocks = sorted({(int(found[1]), int(found[2])) for found in numbered if found})
    names = {(stage, block): f"layers.{stage}.blocks.{block}." for stage, block in blocks}
    depths = Counter(stage for stage, _ in blocks)
    embedding = _shape(tensors, "patch_embed.proj.weight", 4)
    halves = [(stage, _shape(tensors, f"{name}ln_1.weight", 1)[0]) for (stage, _), name in names.items()]
    width = mode([embedding[0], *(half * 2 // 2 ** min(stage, 64) for stage, half in halves)])
    states = [_shape(tensors, f"{name}self_attention.A_logs", 2)[1] for name in names.values()]
    norm_first = tensors["layers.0.blocks.0.conv33conv33conv11.0.weight"].dim() == 1
    mixed, gated = (any(part in key for key in tensors) for part in (".finalconv11.", ".se.fc."))
    if norm_first == mixed:
        raise WeightsError("its conv branch belongs to one network and its channel mixing to another")
    coded: tuple[Block, Block] = ("notebook", "medmamba_v0") if mixed else ("medmambase", "medmamba")
    published = ModelConfig(
        num_classes=next((_shape(tensors, key, axes)[0] for key, axes in _HEAD if key in tensors), 1000),
        in_chans=embedding[1],
        block=coded[0] if gated else coded[1],
        depths=tuple(depths.values()),
        dims=tuple(width * 2**stage for stage in range(len(depths))),
        state=mode(states),
        se_hidden_min=1,
        se_scale=1.0 if gated else None,
    )
    # Where channels // 16 is 0 the published gate has no hidden unit: as one whose weights are 0.
    widths = tuple(max(1, _shape(tensors, f"{name}se.fc.0.weight", 2)[0]) for name in names.values() if gated)
    return published if not gated or widths == published.gate_widths() else replace(published, se_hidden=widths)


def _shape(tensors: Mapping[str, Tensor], key: str, axes: int) -> tuple[int, ...]:
    shape = tuple(tensors[key].shape)
    if len(shape) != axes:
        raise WeightsError(f"{key} has shape {shape}; it must have {axes} axes")
    return shape


def new_parts(
    tensors: Mapping[str, Tensor], config: ModelConfig, block: Block | None, num_classes: int | None
) -> frozenset[str]:
    """Which parts start anew where ``block`` or ``num_classes`` (None: the tensors' own) was asked
    for: "head", "gates", both or none."""
    there = {_part(renamed(key)) for key in tensors}
    head = num_classes is not None and (num_classes != config.num_classes or "head" not in there)
    gates = block is not None and has_se(block) != ("gates" in there)
    return frozenset(part for part, starts in (("head", head), ("gates", gates)) if starts)


def _part(key: str) -> str | None:
    """The part of a network that may be another than the file's, if the parameter is of one."""
    return "head" if key.startswith("head.") else "gates" if ".se." in key else None


def match(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    config: ModelConfig,
    source: str,
    new: frozenset[str] = frozenset(),
) -> tuple[dict[str, Tensor], str]:
    """The state of ``network`` that the tensors of another give, under upstream's names or ours,
    and an account for a person.

    ``config`` is the architecture that the tensors belong to. Of the parts named in ``new``, "head"
    and "gates", nothing is taken. Raises WeightsError naming the first tensor that the network
    cannot take, or that it wants and does not get.
    """
    own = network.state_dict()
    matched: dict[str, Tensor] = {}
    skipped = []
    for theirs, t in tensors.items():
        ours = renamed(theirs)
        target, shape = own.get(ours), tuple(t.shape)
        if _part(ours) not in new and target is not None:
            _check_values(source, theirs, t, target)
        if _part(ours) in new:
            has = "no such parameter" if target is None else f"{tuple(target.shape)}"
            skipped.append(f"{theirs} (shape {shape}, this network has {has})")
        elif target is None or ours in matched:
            what = "is not part of this network" if target is None else f"stands for {ours}, as another tensor does"
            raise WeightsError(f"{source}: {theirs}, of shape {shape}, {what}; {_WHOLE}, without further tensors")
        elif (taken := _taken(ours, t, target, config.in_chans)) is None:
            wanted = tuple(target.shape) if ours == theirs else _upstream_shape(ours, target)
            raise WeightsError(
                f"{source}: {theirs} has shape {shape}; this network, of widths {config.dims} and state "
                f"{config.state}, wants {wanted}; {_WHOLE}"
            )
        else:
            matched[ours] = taken.to(target.dtype)
    started = sorted(own.keys() - matched.keys())
    for key in started:
        if _part(key) not in new:
            hint = "; to start a new head, give num_classes" if _part(key) == "head" else ""
            raise WeightsError(f"{source}: {key}, of shape {tuple(own[key].shape)}, is missing; {_WHOLE}{hint}")
    counts = f"{len(matched)} keys matched, {len(skipped)} skipped, {len(started)} new"
    return matched, "\n".join([counts, *(f"skipped: {k}" for k in skipped), *(f"new: {k}" for k in started)])


def _taken(key: str, t: Tensor, target: Tensor, in_chans: int) -> Tensor | None:
    """``t`` as our parameter, None if it cannot be one."""
    shape, wanted = tuple(t.shape), tuple(target.shape)
    if shape in (wanted, _upstream_shape(key, target)):
        return t.reshape(wanted)
    if key == "embedding.proj.weight" and shape == (wanted[0], in_chans, *wanted[2:]):
        # A grey image is the same image three times.
        return (t.float() if t.itemsize == 1 else t).sum(1, keepdim=True).expand(wanted) / wanted[1]
    if ".se." in key and not t.numel() and {*shape} == {0, max(wanted)}:
        return t.new_zeros(wanted)  # a gate without hidden units
    return None


def _upstream_shape(key: str, target: Tensor) -> tuple[int, ...]:
    """Upstream joins (direction, channel) into one axis and keeps a 1x1 kernel's axes: the same
    numbers in the same order."""
    shape = tuple(target.shape)
    if key.endswith((".A_log", ".D")):
        return (shape[0] * shape[1], *shape[2:])
    return (*shape, 1, 1) if key.endswith(".mix.weight") else shape
