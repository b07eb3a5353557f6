"""What decides how long a chapter takes: the cores and instructions of the CPU, and the GPU with its driver."""

import os
import subprocess
from pathlib import Path
from typing import Any

CPU_FLAGS = {"avx512": "avx512f", "bf16": "avx512_bf16"}  # name in a report: flag of the CPU
CPU_INFO = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """Cores, AVX-512, bf16 units. The last two are None where /proc is not."""
    words = set(CPU_INFO.read_text(encoding="utf-8").split()) if CPU_INFO.exists() else None
    flags = {name: None if words is None else flag in words for name, flag in CPU_FLAGS.items()}
    return {"cores": os.cpu_count() or 1, **flags}


def cpu_name() -> str:
    """The CPU's name and cores, as far as Linux tells."""
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{name}, {os.cpu_count() or 1} cores"


def driver() -> str:
    """Version of the Nvidia driver, or why it is not known."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__}: nvidia-smi did not tell)"
    return told[0] if told else "unknown (nvidia-smi told nothing)"
