"""The peak memory of a chapter: a last cell that the runner adds, and takes out of the executed notebook again.

Only the kernel's own process knows what PyTorch took of a GPU. The cell is the source of `report`, so that it is
checked and tested as any other function.
"""

import inspect

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

TAG = "peak-memory"


def report() -> None:
    """Show an empty output whose metadata hold the peak memory of this process, bytes.

    allocated: of tensors on the GPU; reserved: what PyTorch held of the GPU for them, which is what has to fit. Both
    only where the process used CUDA. host: resident memory, where Linux tells.
    """
    import sys
    from pathlib import Path

    from IPython.display import display

    torch, peak, status = sys.modules.get("torch"), {}, Path("/proc/self/status")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["allocated"] = torch.cuda.max_memory_allocated()
        peak["reserved"] = torch.cuda.max_memory_reserved()
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))  # in kB
        peak["host"] = 1024 * int(line.split()[1])
    display({"text/plain": ""}, raw=True, metadata={"smlmtut": {"peak_memory": peak}})


def add(notebook: NotebookNode) -> None:
    """Append the cell."""
    source = f"{inspect.getsource(report)}\n\n{report.__name__}()"
    notebook.cells.append(new_code_cell(source, metadata={"tags": [TAG]}))


def take(notebook: NotebookNode) -> dict[str, int]:
    """Remove the cell and return what it said; {} where it did not run."""
    cells = [cell for cell in notebook.cells if TAG in cell.metadata.get("tags", [])]
    notebook.cells = [cell for cell in notebook.cells if cell not in cells]
    found = [o.get("metadata", {}).get("smlmtut", {}) for cell in cells for o in cell.outputs]
    return next((dict(each["peak_memory"]) for each in found if "peak_memory" in each), {})
