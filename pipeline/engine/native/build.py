"""Building the kernels: one call of the C++ compiler, its result kept by the digest of all that went into it.

Processes that build at the same time each make a file of their own and rename it to the same name.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
# Not -ffast-math: infinities and NaN carry meaning, and sums must keep their order.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
SECONDS = 120  # most time for the compiler

log = logging.getLogger(__name__)


def library_path(folder: Path | None = None) -> str | None:
    """The compiled library, built if need be; None, with a warning, where that fails.

    Args:
        folder: where libraries are kept; by default the user's cache.
    """
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        log.warning("no C++ compiler (c++, or CXX) was found: the engine runs without its kernels, at less speed")
        return None
    try:
        folder = folder or _cache_folder()
        library = folder / f"kernels-{_digest(compiler)}.so"
        if not library.exists():
            _compile(compiler, library)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home folder
        said = getattr(error, "stderr", None) or error
        log.warning("the engine runs without its kernels, at less speed: %s failed: %s", compiler, said)
        return None
    return str(library)


def _compile(compiler: str, library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        built = Path(scratch) / "kernels.so"
        command = [compiler, *FLAGS, "-shared", "-fPIC", *map(str, SOURCES), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
        built.replace(library)


def _digest(compiler: str) -> str:
    """Of source, flags, compiler and processor: a home folder may be shared by machines that are not alike."""
    facts = [
        *(each.read_bytes() for each in SOURCES + HEADERS),
        *(each.encode() for each in (*FLAGS, compiler, platform.machine(), _processor())),
    ]
    return hashlib.sha256(b"\0".join(facts)).hexdigest()[:16]


def _processor() -> str:
    """What `-march=native` looks at, as far as Linux says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines[:40] if line.startswith(("model name", "flags", "Features")))


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "batchgen"
