"""How a run was made, for its manifest: source, versions, machine, command, time."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from harness import ROOT
from harness.store.sources import OURS, digest, files

PACKAGES = ("torch", "torchvision", "numpy", "pyarrow", "scikit-learn", "hydra-core", "wandb")
DISTRIBUTION = "harness"


def git(root: Path = ROOT) -> dict[str, Any]:
    """Commit of the checkout, and whether our folders differ from it; {} outside a checkout or without git."""

    def ask(*command: str) -> str:
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
        line = ["git", "-C", str(root), *command]
        done = subprocess.run(line, check=False, capture_output=True, text=True, timeout=10, env=environment)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        # a virtual environment inside another repository is not part of it
        top = ask("rev-parse", "--show-toplevel")
        if not top or Path(top).resolve() != root.resolve():
            return {}
        commit = ask("rev-parse", "--verify", "--quiet", "HEAD")
        present = [name for name in (*OURS, "conf") if (root / name).exists()]
        return {"commit": commit, "dirty": bool(ask("status", "--porcelain", "--", *present)) or not commit}
    except (OSError, subprocess.SubprocessError):
        return {}


def versions(packages: Iterable[str] = (DISTRIBUTION, *PACKAGES)) -> dict[str, str]:
    """Versions of Python, and of this package and the installed libraries that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: str = "cpu") -> dict[str, Any]:
    """The machine: processor, cores, threads, BLAS, and the GPU if the run uses one.

    The host's name is hashed: it distinguishes machines without publishing their names.
    """
    import torch

    found: dict[str, Any] = {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "cpu_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "blas": _blas(torch.__config__.show()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "host": hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12],
        "device": device,
        "gpu": None,
        "cuda": None,
    }
    if device.startswith("cuda") and torch.cuda.is_available():  # this starts the driver, which takes seconds
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _blas(config: str) -> str:
    """The BLAS and the version of its kernels, from torch's build flags.

    >>> _blas("PyTorch built with:\\n  - Intel(R) MKL-DNN v3.7\\n  - Build settings: BLAS_INFO=mkl, X=1")
    'mkl; Intel(R) MKL-DNN v3.7'
    """
    info = config.partition("BLAS_INFO=")[2].partition(",")[0].strip()
    kernels = [line.strip(" -").partition(" (")[0] for line in config.splitlines() if "MKL" in line[:40]]
    return "; ".join(part for part in (info, *kernels) if part) or "unknown"


def facts(device: str = "cpu", targets: Iterable[str] = ()) -> dict[str, Any]:
    """What the manifest records at the start of an attempt, after the number of threads is set."""
    found = files(targets)
    return {
        "source": digest(found),
        "files": found,
        "git": git(),
        "versions": versions(),
        "hardware": hardware(device),
        "argv": list(sys.argv),
    }
