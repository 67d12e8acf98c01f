"""What a kernel may cost: kernel_budgets.toml, and how a compiled kernel is held to it."""

import itertools
from dataclasses import replace

import pytest

import kernel_budgets
from compiled_kernel import Usage
from kernel_budgets import Predicted
from kernel_launches import MODULES, Launch, kernels_of
from machine_code import Loop

triton = pytest.importorskip("triton")

BUDGETED = {
    f"{module}_{kernel}"
    for module in ("scan", "sequence")
    for kernel in ("forward.forward", "forward.carry", "backward.adjoint_ends", "backward.backward")
}
SMALL_MAPS = {"normed_product.product", "squeeze_excite_image.whole", "batch_norm.norm", "batch_norm.norm_back"}
GENERATIONS = (75, 80, 86, 89, 90, 100, 120)


def _kernels() -> set[str]:
    return {f"{module}.{kernel.lstrip('_')}" for module in MODULES for kernel in kernels_of(module)}


@pytest.mark.parametrize(
    ("usage", "cycles", "sentence"),
    [
        (Usage(100, 0, 0, (Loop(513, 0, 0, 0, 68, 44),)), 1400, "8.02 instructions a state, 8.0 allowed"),
        (Usage(100, 0, 0, (Loop(512, 0, 3, 0, 68, 44),)), 1400, "0.05 barriers a state, 0.04 allowed"),
        (Usage(100, 0, 0, (Loop(512, 1, 0, 0, 68, 44),)), 1400, "0.02 shuffles a state, 0 allowed"),
        (Usage(100, 0, 0, (Loop(512, 0, 0, 2, 68, 44),)), 1400, "0.03 local a state, 0 allowed"),
        (Usage(100, 4, 0, (Loop(512, 0, 0, 0, 68, 44),)), 1400, "4 bytes spilled, 0 allowed"),
        (Usage(100, 0, 9001, (Loop(512, 0, 0, 0, 68, 44),)), 1400, "9001 bytes of shared memory, 9000 allowed"),
        (Usage(100, 0, 0, (Loop(512, 0, 0, 0, 68, 44),)), 1401, "1401 cycles a turn predicted, 1400 allowed"),
        (Usage(100, 0, 9000, (Loop(512, 0, 2, 0, 68, 44),)), 1400, None),
    ],
)
def test_a_launch_over_its_budget_is_named_with_figure_and_limit(
    usage: Usage, cycles: float, sentence: str | None
) -> None:
    launch = Launch("scan_forward", "forward", "float32", "n16", constants={"STEPS": 4, "N": 16, "BD": 32})
    budget = {
        "spills": 0,
        "shared": 9000,
        "loops": [{"name": "steps", "instructions": 8.0, "shuffles": 0, "barriers": 0.04, "local": 0, "cycles": 1400}],
    }
    found = kernel_budgets.over_budget(launch, Predicted(usage, (cycles,)), budget)
    assert [one.removeprefix("loop steps: ") for one in found] == ([sentence] if sentence else [])


@pytest.mark.parametrize("version", ["3.3.1", "3.6.0", "3.7.1", "3.8.0", "3.9.0"])
def test_no_kernel_but_a_sweep_may_spill_with_any_version_of_triton(version: str) -> None:
    budgets, _ = kernel_budgets.budgets_for(version, kernel_budgets.read())
    for kernel, n in itertools.product(_kernels(), (None, 8, 16, 64)):
        module, name = kernel.split(".")
        launch = Launch(module, name, "float32", "", constants={} if n is None else {"STEPS": 4, "N": n, "BD": 32})
        budget = kernel_budgets.budget_of(launch, 75, budgets)
        over = kernel_budgets.over_budget(launch, Predicted(Usage(255, 4, 99)), budget)
        assert over == ([] if name == "backward" else ["4 bytes spilled, 0 allowed"]), kernel
        over = kernel_budgets.over_budget(launch, Predicted(Usage(255, 0, 65536)), budget)
        assert len(over) == 1 and "65536 bytes of shared memory" in over[0], kernel


def test_a_version_of_triton_has_its_own_budgets_and_one_without_any_is_said_so() -> None:
    file = kernel_budgets.read()
    own, said = kernel_budgets.budgets_for("3.7.1", file)
    assert own == file["budget"] and said == "budgets of Triton 3.7: instructions, cycles and memory"
    for version in ("3.8.0", "3.70.0"):
        memory, said = kernel_budgets.budgets_for(version, file)
        assert memory and all("loops" not in budget for budget in memory)
        assert said == (
            f"no budgets of Triton {version}, only of 3.3, 3.6, 3.9, 3.7: nothing but memory is held to a limit"
        )
    for minor in ("3.3", "3.6", "3.9"):
        few, said = kernel_budgets.budgets_for(f"{minor}.1", file)
        assert said == f"budgets of Triton {minor}: instructions and memory"
        for kernel in BUDGETED:
            module, name = kernel.split(".")
            launch = Launch(module, name, "float16", "n16", constants={"STEPS": 4, "N": 16, "BD": 32})
            budget = kernel_budgets.budget_of(launch, 75, few)
            assert budget is not None and "shared" in budget, (kernel, minor)
            assert budget["spills"] == 0 or name == "backward", (kernel, minor)
            most = budget["loops"][0]["instructions"] * launch.states
            usage = Usage(255, 0, budget["shared"], (Loop(int(most), 1, 1, 0, 68, 44),))
            assert kernel_budgets.over_budget(launch, Predicted(usage), budget) == []
            usage = replace(usage, spills=2000, loops=(Loop(int(most) + 1, 1, 1, 0, 68, 44),))
            assert len(kernel_budgets.over_budget(launch, Predicted(usage), budget)) == 2
            budget = kernel_budgets.budget_of(replace(launch, constants={"N": 8}), 75, few)
            assert budget is not None and "loops" not in budget, (kernel, minor)


def test_the_scans_have_budgets_of_instructions_memory_and_cycles() -> None:
    budgets = kernel_budgets.read()["budget"]
    for kernel in _kernels():
        module, name = kernel.split(".")
        launch = Launch(module, name, "float32", "n16", constants={"STEPS": 4, "N": 16, "BD": 32})
        budget = kernel_budgets.budget_of(launch, 90, budgets)
        if kernel in SMALL_MAPS:  # which are held to their memory alone, everywhere
            assert budget is not None and budget["spills"] == 0 and "loops" not in budget, kernel
            assert budget == kernel_budgets.budget_of(launch, 75, budgets), kernel
            over = kernel_budgets.over_budget(launch, Predicted(Usage(99, 4, budget["shared"])), budget)
            assert over == ["4 bytes spilled, 0 allowed"], kernel
            continue
        if kernel not in BUDGETED:
            assert budget is not None and budget["spills"] == 0, kernel
            assert budget["shared"] == 16384 and "loops" not in budget, kernel
            continue
        assert budget is not None and {"warps", "shared", "spills"} <= set(budget), kernel
        assert all({"instructions", "local", "cycles"} <= set(loop) for loop in budget["loops"]), kernel
        for arch, dtype in itertools.product(GENERATIONS, ("float32", "bfloat16", "float16")):
            budget = kernel_budgets.budget_of(replace(launch, dtype=dtype), arch, budgets)
            assert budget is not None and {"shared", "spills", "loops"} <= set(budget), (kernel, arch, dtype)
            assert budget["spills"] == 0 or name == "backward", kernel
