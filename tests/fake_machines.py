"""Machines that the doctor's tests judge: a workstation with a card, and what differs from it."""

from dataclasses import replace

from medmambase.doctor.facts import Facts, Folder, Trial
from medmambase.doctor.torch_build import Card

GPU = Trial(
    "2.13.0+cu130", "13.0", None, True, ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"), (8, 9), "triton",
    "the tensors are on cuda", 2.5, 3e-7, 0.4,
)  # fmt: skip  # in the order of the fields
NO_GPU = replace(GPU, sees_gpu=False, capability=None, backend="cpu", reason="the tensors are on the CPU")
RTX = Facts(
    "Windows", "10.0.22631", "win-amd64", (3, 12, 4), "", "C:\\venv", True, None, "0.2.0", "0.2.0", "2.13.0+cu130",
    {"triton-windows": "3.7.1.post27"}, "0.50.0", (), (), Card((13, 0), (8, 9)), "NVIDIA GeForce RTX 4070", "581.15",
    Folder("C:\\Users\\ann\\Temp", True), Folder("C:\\Users\\ann\\.triton\\cache", True), True, 32 * 10**9,
    200 * 10**9, GPU,
)  # fmt: skip  # in the order of the fields
LINUX = replace(
    RTX, system="Linux", architecture="x86_64", compiler="/usr/bin/gcc", tritons={"triton": "3.7.1"}, long_paths=None
)
NOTHING = Trial()
CU130 = "pip install --force-reinstall torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"
CPU_TRIAL = replace(NO_GPU, torch="2.13.0+cpu", cuda=None, builds=())
LAPTOP = replace(RTX, card=None, card_name="", driver="", torch="2.13.0+cpu", trial=CPU_TRIAL)
FAILED = replace(GPU, kernel_s=None, error=None, scan_ms=None, failed="CalledProcessError: tcc.exe returned 1")
