"""Facts about the machine and the software that a run uses."""

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

_PACKAGES = ("llm-oxide", "torch", "numpy", "safetensors")


def machine_facts(device: torch.device) -> dict[str, str]:
    """Returns what a run's numbers of time depend on: processor, memory, device, threads, system."""
    facts = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": _memory(),
        "threads": str(torch.get_num_threads()),
        "system": platform.platform(terse=True),
    }
    if device.type == "cuda":
        facts["GPU"] = torch.cuda.get_device_name(device)
    return {name: fact for name, fact in facts.items() if fact}


def version_facts() -> dict[str, str]:
    """Returns the versions of Python and of the packages that compute."""
    facts = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return facts


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _memory() -> str:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return ""
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
