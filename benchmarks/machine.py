"""What every result says of the machine it was measured on, and where results are kept."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.models import FOLDER

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LIBRARIES = ("torch", "transformers", "tokenizers", "pyarrow", "ray", "numpy")
SIMD = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """CPU, cores this process may use, memory, versions, and how busy the machine is now.

    A load above the number of cores means that others wanted them too; `load_1min` read after a benchmark includes the
    benchmark itself, so take it before.
    """
    return {
        "cpu": _proc_field(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "simd": [flag for flag in SIMD if flag in _proc_field(Path("/proc/cpuinfo"), "flags").split()],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load_1min": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version()} | _versions(),
    }


def _versions() -> dict[str, str]:
    """Of the libraries that are there: a GPU's machine may have torch and transformers alone."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def peak_bytes(pid: int) -> int:
    """Most resident memory a process has had so far (`VmHWM`), shared pages included; 0 if it is gone."""
    try:
        return int(_proc_field(Path(f"/proc/{pid}/status"), "VmHWM").removesuffix("kB")) * 1024
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return 0


def process_stats() -> Iterator[list[str]]:
    """Fields of `/proc/PID/stat` of all processes, from the state on: 1 is the parent, 3 the session, 11 and 12 the CPU
    ticks of its own, 13 and 14 those of its ended children."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield stat.read_text().rpartition(")")[2].split()


def result_path(name: str, quick: bool = False) -> Path:
    """Where a file of a result goes: into `results/`, or away from it where the numbers mean nothing."""
    folder = FOLDER / "quick" if quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def write_result(name: str, values: dict[str, Any], quick: bool = False) -> Path:
    """Keep a result as `results/NAME.json`, in place of the last one."""
    path = result_path(f"{name}.json", quick)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return path


def _proc_field(path: Path, name: str) -> str:
    """Value of the first line `NAME : VALUE` of a file under /proc; empty if there is none."""
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
