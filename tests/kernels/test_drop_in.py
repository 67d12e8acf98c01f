"""Other people's Mamba code gets our operators: the contract is kept to the last name, results are
those of the definition, and a package that is really there is never shadowed."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import drop_in_contract as contract
import pytest
import torch
from conftest import TOLERANCE, relative_error
from drop_in_contract import CONVOLUTIONS, RAW_SCANS, scan_calls, tensors

from medmambase_kernels import causal_conv1d, drop_in, selective_scan, use_backend
from medmambase_kernels._drop_in import blocks, convolutions, generation, language_model, norms, scan_extensions
from medmambase_kernels._drop_in.finder import Finder
from medmambase_kernels._drop_in.names import ANSWERS, ROOTS


@pytest.fixture
def installed() -> Iterator[None]:
    drop_in.install(quiet=True)
    yield
    drop_in.uninstall()


def test_importing_the_kernels_alone_answers_nothing() -> None:
    assert not any(isinstance(finder, Finder) for finder in sys.meta_path)
    assert not set(ROOTS) & set(sys.modules)
    with pytest.raises(ImportError):
        importlib.import_module("selective_scan_cuda")


def test_the_contract_is_kept(installed: None) -> None:
    with use_backend("torch"):  # names and numbers of results alone
        assert contract.broken() == []


def _shorter(right):
    return lambda *arguments: right(*arguments)[:-1]


PLANTED = {  # what is left out: the file, the name, what stands there instead, what is reported
    "a compiled pass": (scan_extensions, "bwd", lambda *_: [], "returns (2, 0), not (2, 7)"),
    "out_z": (scan_extensions, "bwd", _shorter(scan_extensions.bwd), "returns (3, 8), not (3, 9)"),
    "the states": (scan_extensions, "core_fwd", _shorter(scan_extensions.core_fwd), "selective_scan_cuda_core"),
    "an old call": (convolutions, "causal_conv1d_fwd", lambda x, w, b, *r: x if len(r) == 4 else x[0], "4 and 6"),
    "a gradient too many": (
        convolutions,
        "causal_conv1d_bwd",
        lambda *_: (None,) * 4,
        "with 4 and 6 arguments returns (2, 4, 5) and 4",
    ),
    "a sum": (norms, "layer_norm_fn", lambda x, *_, **__: x, "layer_norm_fn with prenorm True"),
    "a mask": (norms, "rms_norm_fn", lambda x, weight, bias: x, "rms_norm_fn takes ['x', 'weight', 'bias'], not"),
    "a residual": (blocks.Block, "forward", lambda self, x, *_, **__: x, "a block does not return"),
    "logits": (language_model, "CausalLMOutput", lambda logits: logits, "a language model: 'Tensor' object has no"),
    "an option": (language_model, "create_block", lambda d_model: None, "create_block takes ['d_model'], not first"),
    "scores": (
        generation,
        "decode",
        lambda ids, *_: generation.Generated(ids, (), 0.0),
        "generate returns (2, 3) tokens",
    ),
    "a config": (language_model, "MambaConfig", lambda d_model: None, "MambaConfig takes ['d_model'], not first"),
    "a keyword": (blocks, "Mamba", lambda d_model, d_state=16: None, "mamba_ssm.Mamba takes ['d_model', 'd_state']"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_an_omission_is_reported(planted: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    owner, name, instead, message = PLANTED[planted]
    monkeypatch.setattr(owner, name, instead)
    request.getfixturevalue("installed")
    with use_backend("torch"):
        assert any(message in line for line in contract.broken())


@pytest.mark.parametrize("name", sorted(contract.NAMES))
def test_a_module_or_a_name_that_is_left_out_is_reported(
    name: str, installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(name)
    for member in contract.NAMES[name]:
        with monkeypatch.context() as patch:
            patch.delattr(module, member)
            assert f"{name} has no {member}" in list(contract.absent())


@pytest.mark.parametrize("end", RAW_SCANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_compiled_scan_is_the_definition_with_its_gradients(end: str, dtype: torch.dtype, installed: None) -> None:
    t = tensors(dtype)
    if end == "_ndstate":
        t |= {"A": t["A"][:, :1], "B": t["B"][:, :, :1], "C": t["C"][:, :, :1]}
    (out, x, *gated), gradients = scan_calls(end, t, z=end == "", recompute=end == "")
    leaves = {name: value.detach().requires_grad_() for name, value in t.items()}
    z = leaves.pop("z")
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    y, last = selective_scan(
        **leaves, z=z if gated else None, delta_softplus=True, return_last_state=True, backend="reference",
        out_dtype=torch.float32 if end == "_oflex" else dtype,
    )  # fmt: skip  # tensors, options
    wanted = [leaves[name] for name in names] + [z] * len(gated)
    expected = [y, last, *torch.autograd.grad(y, wanted, torch.ones_like(y))]
    result = gated[0] if gated else out
    assert result.dtype == (torch.float32 if end == "_oflex" else dtype)
    for one, other in zip([result, x[:, :, -1, 1::2], *gradients], expected, strict=False):
        tolerance = 4 * TOLERANCE[other.dtype if other.dtype == dtype else dtype]
        assert relative_error(one.reshape(other.shape), other) <= tolerance
    if gated:
        assert relative_error(gradients[-1], y) <= 4 * TOLERANCE[dtype]  # out_z once more


def test_one_state_may_come_without_its_axis_in_core_too(installed: None) -> None:
    core, one = (importlib.import_module(f"selective_scan_cuda_{end}") for end in ("core", "ndstate"))
    assert (core.fwd, core.bwd) == (one.fwd, one.bwd)


def test_delta_with_fewer_rows_goes_through_oflex(installed: None) -> None:
    t = tensors()
    t |= {"delta": t["delta"][:, :2], "delta_bias": t["delta_bias"][:2]}
    (out, _), (_, ddelta, *_, dbias) = scan_calls("_oflex", t)
    t.pop("z")
    assert relative_error(out, selective_scan(**t, delta_softplus=True, backend="reference")) <= 1e-5
    assert (ddelta.shape, dbias.shape) == ((2, 2, 5), (2,))


@pytest.mark.parametrize("way", CONVOLUTIONS)
def test_a_compiled_convolution_is_the_definition_in_every_way_of_calling_it(way: str, installed: None) -> None:
    module = importlib.import_module("causal_conv1d_cuda")
    leaves = [t.requires_grad_() for t in (torch.randn(2, 4, 5), torch.randn(4, 3), torch.randn(4))]
    dout, dx = torch.randn(2, 4, 5), torch.empty(2, 8, 5)[:, 4:]
    forward, backward, _ = CONVOLUTIONS[way]
    y = causal_conv1d(*leaves, activation="silu", backend="reference")
    expected = torch.autograd.grad(y, leaves, dout)
    given = (*(t.detach() for t in leaves), dout, dx)
    assert relative_error(module.causal_conv1d_fwd(*forward(*given)), y) <= 1e-5
    found = module.causal_conv1d_bwd(*backward(*given))
    for one, other in zip(found, expected, strict=False):
        assert relative_error(one, other) <= 1e-5
    if way != "7 and 5":
        assert found[0] is dx


def test_what_is_called_with_arguments_of_no_release_says_which_it_takes(installed: None) -> None:
    x, weight = torch.randn(2, 4, 5), torch.randn(4, 3)
    with pytest.raises(TypeError, match=r"causal_conv1d_fwd was called with 6 arguments; it takes 4, 5, 7 or 8"):
        convolutions.causal_conv1d_fwd(x, weight, None, None, None, True)
    with pytest.raises(NotImplementedError, match="A is complex"):
        importlib.import_module("mamba_ssm").mamba_inner_fn(
            x, weight, None, weight, weight, weight, None, torch.ones(2, 2, dtype=torch.complex64)
        )


def test_a_convolution_goes_on_from_its_state(installed: None) -> None:
    module = importlib.import_module("causal_conv1d")
    x, weight, bias, state = torch.randn(2, 4, 6), torch.randn(4, 3), torch.randn(4), torch.zeros(2, 4, 4)
    whole = module.causal_conv1d_fn(x, weight, bias, activation="silu")
    parts = [module.causal_conv1d_update(x[..., i], state, weight, bias, "silu") for i in range(5)]
    assert torch.allclose(torch.stack(parts, 2), whole[..., :5], atol=1e-6)
    assert torch.equal(state, x[..., 1:5])
    assert torch.equal(module.causal_conv1d_fn(x, weight, bias, "silu"), whole)  # as it was once called


def test_ours_takes_more_than_upstream_but_no_shared_rows_of_delta_outside_oflex(installed: None) -> None:
    scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    convolve = importlib.import_module("causal_conv1d").causal_conv1d_fn
    u, B = torch.rand(1, 4, 3), torch.rand(1, 300, 3)
    with use_backend("torch"):
        assert convolve(u, torch.rand(4, 1)).shape == convolve(u, torch.rand(4, 9)).shape == u.shape
        assert scan(u.double(), u, -torch.rand(4, 300), B, B).dtype == torch.float64
        for refused in (scan, scan_extensions.core_fwd):
            with pytest.raises(ValueError, match=r"^delta has shape \(1, 2, 3\); it must be .* with channels 4"):
                refused(u, u[:, :2], -torch.rand(4, 300), B, B)


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("residual", [None, torch.float32, torch.float16])
def test_a_norm_adds_first_and_keeps_the_sum(rms: bool, residual: torch.dtype | None, installed: None) -> None:
    layer_norm_fn = importlib.import_module("mamba_ssm.ops.triton.layernorm").layer_norm_fn
    x, weight, bias = torch.randn(2, 3, 8).half(), torch.randn(8), torch.randn(8)
    before = None if residual is None else torch.randn(2, 3, 8).to(residual)
    total = x.double() if before is None else x.double() + before.double()
    centred = total if rms else total - total.mean(-1, keepdim=True)
    expected = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * weight + bias
    options = {"residual": before, "eps": 1e-5, "prenorm": True, "residual_in_fp32": True, "is_rms_norm": rms}
    y, kept = layer_norm_fn(x, weight, bias, **options)
    assert (y.dtype, kept.dtype) == (torch.float16, residual or torch.float32)
    assert relative_error(y, expected) <= 1e-3
    assert relative_error(kept, total) <= 1e-3
    assert torch.equal(layer_norm_fn(x, weight, bias, **options | {"prenorm": False}), y)


@pytest.mark.parametrize("rms", [False, True])
def test_a_norm_of_two_branches_has_two_weights_and_draws_what_it_drops(rms: bool, installed: None) -> None:
    module = importlib.import_module("mamba_ssm.ops.triton.layer_norm")
    x, x1, residual = (torch.randn(2, 5, 8, dtype=torch.float64) for _ in range(3))
    weight, weight1, bias1 = (torch.randn(8, dtype=torch.float64) for _ in range(3))
    fn = module.rms_norm_fn if rms else module.layer_norm_fn
    y, y1, kept, mask, mask1 = fn(
        x, weight, None, residual, x1, weight1, bias1, dropout_p=0.25, prenorm=True, return_dropout_mask=True
    )
    assert 0.4 < mask.double().mean() < 1 and not torch.equal(mask, mask1)
    total = (x * mask + x1 * mask1) / 0.75 + residual
    centred = total if rms else total - total.mean(-1, keepdim=True)
    normed = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
    for one, other in ((kept, total), (y, normed * weight), (y1, normed * weight1 + bias1)):
        assert relative_error(one, other) <= 1e-12
    scale = torch.randn(2, 5)
    scaled = fn(x, weight, None, rowscale=scale)
    assert relative_error(scaled, fn(x * scale[..., None], weight, None)) <= 1e-6
    with pytest.raises(ValueError, match="rowscale was given beside x1"):
        fn(x, weight, None, x1=x1, rowscale=scale)
    linear = torch.randn(3, 8, dtype=torch.float64)
    out, kept = module.layer_norm_linear_fn(x, weight, None, linear, None, residual, prenorm=True, is_rms_norm=rms)
    assert torch.equal(out, fn(x, weight, None, residual) @ linear.t()) and torch.equal(kept, x + residual)


def test_a_norm_drops_nothing_but_in_training(installed: None) -> None:
    norm = importlib.import_module("mamba_ssm.ops.triton.layernorm").RMSNorm(8, dropout_p=0.5)
    x = torch.randn(4, 8)
    assert (norm(x) == 0).any()
    assert not (norm.eval()(x) == 0).any()
    torch.nn.init.zeros_(norm.weight)
    norm.reset_parameters()
    assert norm.weight.eq(1).all() and norm.bias is None


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", ["RMSNorm", "LayerNorm"])
def test_a_gated_norm_has_a_mean_for_each_group(name: str, before: bool, installed: None) -> None:
    made = getattr(importlib.import_module("mamba_ssm.ops.triton.layernorm_gated"), name)
    norm = made(8, eps=1e-3, group_size=4, norm_before_gate=before)
    torch.nn.init.normal_(norm.weight)
    x, z = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    gate = z.double() * torch.sigmoid(z.double())
    wide = (x if before else x * gate).double().view(2, 3, 2, 4)
    centred = wide if name == "RMSNorm" else wide - wide.mean(-1, keepdim=True)
    y = (centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-3)).view(2, 3, 8) * norm.weight
    assert relative_error(norm(x, z), y * gate if before else y) <= 1e-5
    assert relative_error(norm(x), norm(x, torch.full_like(x, 1.2784645)) if before else norm(x)) <= 1e-5  # silu is 1


@pytest.mark.parametrize("heads", [False, True])
def test_a_step_with_heads_is_its_reference(heads: bool, installed: None) -> None:
    module = importlib.import_module("mamba_ssm.ops.triton.selective_state_update")
    of = (4, 3) if heads else (3,)  # heads and channels
    state, x, dt, z = torch.randn(2, *of, 5), *(torch.randn(2, *of) for _ in range(3))
    A, D, bias = -torch.rand(*of, 5), torch.randn(of), torch.randn(of)
    B, C = (torch.randn(2, *((2,) if heads else ()), 5) for _ in range(2))
    expected, before = state.clone(), state.clone()
    y = module.selective_state_update(state, x, dt, A, B, C, D, z, bias, True)
    right = module.selective_state_update_ref(expected, x, dt, A, B, C, D, z, bias, True)
    assert relative_error(y, right) <= 1e-5 and relative_error(state, expected) <= 1e-5
    assert y.shape == right.shape == x.shape and not torch.allclose(state, before)


def fake(folder: Path, name: str) -> None:
    """A package that was really installed, or lies beside the script."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("Mamba = 'the real one'\n", encoding="utf-8")


def test_a_package_that_is_really_there_is_never_shadowed_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(tmp_path, "mamba_ssm")
    monkeypatch.syspath_prepend(tmp_path)
    drop_in.install()
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "found elsewhere and left as they are: mamba_ssm (--instead takes ours)" in said
    assert said.startswith("medmambase_kernels answers selective_scan_cuda, ")
    assert "on backend cpu: the tensors are on the CPU" in said or torch.cuda.is_available()
    try:
        assert importlib.import_module("mamba_ssm").Mamba == "the real one"
        with pytest.raises(ImportError):  # half of it is not ours
            importlib.import_module("mamba_ssm.modules.mamba_simple")
        assert importlib.import_module("selective_scan_cuda").fwd is scan_extensions.fwd
        with pytest.raises(RuntimeError, match="mamba_ssm was imported before"):
            drop_in.install(instead=True)
        sys.modules.pop("mamba_ssm")
        drop_in.install(instead=True)
        assert "left as they are" not in capsys.readouterr().out
        assert importlib.import_module("mamba_ssm").Mamba is blocks.Mamba
    finally:
        drop_in.uninstall()
        sys.modules.pop("mamba_ssm", None)


def test_a_cpu_device_may_be_entered_while_names_are_answered_and_no_longer(installed: None) -> None:
    with torch.cuda.device(torch.device("cpu")), torch.cuda.device("cpu"):
        pass
    drop_in.uninstall()
    with pytest.raises(ValueError, match="cuda device"):
        torch.cuda.device(torch.device("cpu"))


def test_every_name_is_listed_and_what_is_not_provided_stands_in_brackets() -> None:
    lines = dict(line.partition(": ")[::2] for line in drop_in.listing().splitlines())
    assert list(lines) == list(ANSWERS)
    assert "(Mamba2)" in lines["mamba_ssm"] and ", Mamba," in lines["mamba_ssm"]


SCRIPT = """
import concurrent.futures, json, multiprocessing, sys
import selective_scan_cuda
import torch
from mamba_ssm import Mamba


def work(x):
    return [selective_scan_cuda.__spec__.origin, __name__, str(torch.ones(x, device="cuda").device)]


if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:  # ends if its process does
        found = pool.submit(work, 1).result()
    print(json.dumps([sys.argv[1:], Mamba.__module__, found]))
"""


@pytest.mark.slow
def test_a_script_runs_with_its_own_flags_and_spawns_processes_that_get_the_same_names(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "a folder ü"
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT, encoding="utf-8")
    words = [sys.executable, "-m", "medmambase_kernels.drop_in", "--cpu", str(folder / "train.py"), "--list", "-m", "x"]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace")
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first.startswith("medmambase_kernels answers selective_scan_cuda, ")
    assert json.loads(last) == [
        ["--list", "-m", "x"], "medmambase_kernels._mamba.block", ["medmambase_kernels.drop_in", "__mp_main__", "cpu"],
    ]  # fmt: skip  # a list
