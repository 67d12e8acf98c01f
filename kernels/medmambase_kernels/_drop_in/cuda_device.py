"""Let ``torch.cuda.device`` take a CPU device, and then do nothing: VMamba enters it with the
device of whatever tensor it has, and torch refuses the CPU."""

from typing import Any

import torch

_ORIGINAL = torch.cuda.device


class DeviceOrNothing(_ORIGINAL):  # type: ignore[misc,unused-ignore]  # torch's own context
    """``torch.cuda.device``, without effect for a CPU device."""

    def __init__(self, device: Any) -> None:
        self.elsewhere = isinstance(device, str | torch.device) and torch.device(device).type == "cpu"
        if not self.elsewhere:
            super().__init__(device)

    def __enter__(self) -> Any:
        return None if self.elsewhere else super().__enter__()  # type: ignore[no-untyped-call]  # torch's own

    def __exit__(self, *error: Any) -> Any:
        return None if self.elsewhere else super().__exit__(*error)


def admit_cpu_devices(admit: bool) -> None:
    """Put it in the place of torch's context, or put that back."""
    torch.cuda.device = DeviceOrNothing if admit else _ORIGINAL  # type: ignore[misc]  # as intended
