"""The loop of both scans, for exported graphs: h_l = exp(delta_l A) h_{l-1} + drive_l B_l and y_l =
<C_l, h_l>.

Time stands first and channels last, so that one step is arithmetic on a slab (batch and group in
either order, state, channel). There are two forms of it:

``symbolic`` stands for ONNX's operator Scan, a loop over steps whose slabs stay in the cache. In an
ONNX file it is the faster one at every length: for the stages of `tiny` at 128 px, onnxruntime
takes for one image on one thread, in milliseconds (an AMD EPYC that others kept busy; the second
and third line with the projection of delta and the four orders, the first without)

    length x channels      1024 x 96   256 x 192   64 x 384   16 x 768
    Scan                          22          12          2          1
    ``chunked``                   51          22         10          7
    backend "cpu"                  2           1        0.6        0.6

``chunked`` has no loop but over the steps of a chunk and over chunks, both unrolled: all chunks
take a step at once, then what each began with is added. It needs PyTorch's operators alone, and a
length that is known. Decays are multiplied and never divided by, so none can overflow.

Chunks within a Scan, that is fewer steps on larger slabs (4, 8 or 16 chunks side by side, a second
Scan over what each begins with, a correction), were measured too, in milliseconds of the processor:

    length x channels                 1024 x 48   1024 x 96   256 x 96
    Scan                                    7.4         9.8        2.6
    chunks, corrected afterwards     8.5 to 9.5    13 to 15   3.5 to 4.4
    chunks, passed through twice     9.6 to 10           15   3.8 to 4.1

A step of Scan costs about 2 microseconds beside its arithmetic, and every chunked form costs at
least four more operations on each element of the state: its few steps save less than these take.
"""

import torch
from torch import Tensor

DOMAIN, NAME = "medmambase", "Recurrence"
CHUNK = 16


def symbolic(entry: Tensor, delta: Tensor, drive: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """The last state (..., n, e) and y (l, ..., 1, e), as a node that only an ONNX graph knows.

    entry: (..., n, e), the state before the first step, of each image and group of channels. delta
    and drive = delta * u: (l, ..., 1, e). A: whatever broadcasts to entry. B: (l, ..., n, 1). C:
    (l, ..., 1, n).
    """
    last, y = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{NAME}",
        (entry, delta, drive, A, B, C),
        dtypes=(entry.dtype, entry.dtype),
        shapes=(entry.shape, delta.shape),
        version=1,
    )
    return last, y


def chunked(entry: Tensor, delta: Tensor, drive: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """The same in PyTorch's operators; arguments as ``symbolic`` takes them."""
    length = len(delta)
    if not length:
        return entry.clone(), torch.zeros_like(delta)
    steps = min(CHUNK, length)
    # A step of zeros leaves the state as it is.
    delta, drive, B = (_in_chunks(t, steps) for t in (delta, drive, B))
    decays, drives = torch.exp(delta * A), drive * B  # (chunks, steps, ..., n, e)
    products, states = [decays[:, 0]], [drives[:, 0]]
    for step in range(1, steps):
        products.append(products[-1] * decays[:, step])
        states.append(states[-1] * decays[:, step] + drives[:, step])
    entries = [entry]
    for chunk in range(len(delta)):
        entries.append(entries[-1] * products[-1][chunk] + states[-1][chunk])
    begun = torch.stack(entries[:-1])
    whole = [state + product * begun for product, state in zip(products, states, strict=True)]
    y = torch.matmul(C, torch.stack(whole, 1).flatten(0, 1)[:length])
    return entries[-1], y


def _in_chunks(t: Tensor, steps: int) -> Tensor:
    """t (l, ...) as (chunks, steps, ...), with zeros after the last step."""
    missing = -len(t) % steps
    if missing:
        t = torch.cat([t, t.new_zeros(missing, *t.shape[1:])])
    return t.unflatten(0, (-1, steps))
