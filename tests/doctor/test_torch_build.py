"""The torch and the Triton that fit a machine."""

import pytest

from medmambase.doctor import torch_build
from medmambase.doctor.torch_build import Card, Machine, SetupError, choose_torch, choose_triton, read_card

PINNED = f"torch=={torch_build.TORCH}"
CPU_INDEX, CU126, CU130 = (("--index-url", torch_build.WHEELS + build) for build in ("cpu", "cu126", "cu130"))
AMPERE_NEW, AMPERE_OLD = Card((13, 0), (8, 6)), Card((12, 4), (8, 6))


def machine(
    system: str = "Linux", card: Card | None = None, python: tuple[int, int] = (3, 12), architecture: str | None = None
) -> Machine:
    usual = {"Linux": "x86_64", "Windows": "win-amd64", "Darwin": "arm64"}
    return Machine(system, architecture or usual[system], python, card)


@pytest.mark.parametrize(
    ("system", "card", "found", "expected"),
    [
        ("Linux", None, "2.7.0", ()),
        ("Linux", AMPERE_NEW, "2.15.0+cu132", ()),
        ("Windows", None, "2.10.0a0+git1", ()),
        (
            "Linux",
            None,
            "2.6.1",
            (f"{PINNED}+cpu", "--no-deps", "--extra-index-url", CPU_INDEX[1], "--retries", "1", "--timeout", "30"),
        ),
        (
            "Linux",
            None,
            None,
            (f"{PINNED}+cpu", "--no-deps", "--extra-index-url", CPU_INDEX[1], "--retries", "1", "--timeout", "30"),
        ),
        ("Linux", AMPERE_NEW, None, (PINNED,)),
        ("Linux", AMPERE_OLD, None, (PINNED, *CU126)),
        ("Linux", Card(None, None), None, (PINNED, *CU126)),
        ("Linux", Card((13, 0), (6, 1)), None, (PINNED, *CU126)),
        ("Linux", Card((12, 8), (12, 0)), None, (PINNED,)),
        ("Windows", None, None, (PINNED,)),
        ("Windows", AMPERE_NEW, "1.13.1", (PINNED, *CU130)),
        ("Windows", AMPERE_OLD, None, (PINNED, *CU126)),
        ("Windows", Card((13, 1), None), None, (PINNED, *CU130)),
        ("Windows", Card((13, 0), (7, 0)), None, (PINNED, *CU126)),
        ("Windows", Card((12, 9), (12, 0)), None, (PINNED, *CU130)),
        ("Darwin", None, None, (PINNED,)),
    ],
)
def test_the_torch_fits_the_machine(
    system: str, card: Card | None, found: str | None, expected: tuple[str, ...]
) -> None:
    assert choose_torch(machine(system, card), found).arguments == expected


def test_without_a_card_linux_never_gets_the_cuda_build() -> None:
    for architecture in torch_build.ARCHITECTURES["Linux"]:
        assert PINNED not in choose_torch(machine(architecture=architecture), None).arguments


def test_a_driver_too_old_for_its_card_is_told_to_be_updated() -> None:
    assert "update it" in choose_torch(machine("Windows", Card((12, 8), (12, 0))), None).reason


@pytest.mark.parametrize(
    ("impossible", "advice"),
    [
        (machine("Darwin", architecture="x86_64"), "Apple silicon"),
        (machine("Windows", architecture="win32"), "64-bit"),
        (machine("Windows", architecture="win-arm64"), "x64"),
        (machine("Linux", architecture="armv7l"), "aarch64"),
        (machine("FreeBSD", architecture="amd64"), "Linux"),
        (machine(python=(3, 15)), "3.11 to 3.14"),
    ],
)
def test_a_machine_without_a_wheel_hears_what_to_use_unless_it_has_a_torch(impossible: Machine, advice: str) -> None:
    with pytest.raises(SetupError, match=advice):
        choose_torch(impossible, None)
    assert choose_torch(impossible, "2.8.0").arguments == ()


@pytest.mark.parametrize(
    ("system", "torch", "test", "expected"),
    [
        ("Linux", "2.13.0+cpu", True, "triton==3.7.1"),
        ("Linux", "2.13.0+cpu", False, None),
        ("Linux", "2.1.0", True, None),
        ("Linux", "2.15.0", True, None),
        ("Windows", "2.13.0", False, "triton-windows==3.7.1.*"),
        ("Windows", "2.12.0", True, None),
        ("Darwin", "2.13.0", True, None),
    ],
)
def test_triton_is_the_one_made_for_the_pinned_torch(system: str, torch: str, test: bool, expected: str | None) -> None:
    assert choose_triton(machine(system), torch, test) == expected


@pytest.mark.parametrize(
    ("overview", "capabilities", "expected"),
    [
        ("| NVIDIA-SMI 581.15    Driver Version: 581.15    CUDA Version: 13.0     |", "8.6\n", Card((13, 0), (8, 6))),
        (
            "| NVIDIA-SMI 535.183.01  Driver Version: 535.183.01  CUDA Version: 12.2 |",
            "7.5\r\n8.9\r\n",
            Card((12, 2), (8, 9)),
        ),
        ("| NVIDIA-SMI 595.10   CUDA UMD Version: 13.2 |", "12.0\n", Card((13, 2), (12, 0))),
        ("| CUDA Version: N/A |", 'Field "compute_cap" is not a valid field to query.\n', Card(None, None)),
        ("", "[N/A]\n", Card(None, None)),
    ],
)
def test_the_card_is_read_from_nvidia_smi(overview: str, capabilities: str, expected: Card) -> None:
    assert read_card(overview, capabilities) == expected


@pytest.mark.parametrize(
    ("listing", "expected"),
    [("GPU 0: NVIDIA GeForce RTX 4070 (UUID: x)\n", True), ("No devices found.\n", False), (None, False)],
)
def test_a_driver_without_a_card_is_no_card(
    monkeypatch: pytest.MonkeyPatch, listing: str | None, expected: bool
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(torch_build, "output", lambda command: listing if "-L" in command else "")
    assert (torch_build.find_card() is not None) is expected
