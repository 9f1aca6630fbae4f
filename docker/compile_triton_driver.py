"""Compiles Triton's CUDA driver module into `TRITON_CACHE_DIR`, so that the image runs kernels without a C compiler.

Triton looks its module up by source, folders and libraries. `TRITON_LIBCUDA_PATH` must name the folder in which the
NVIDIA Container Toolkit will mount the driver's library; a stub stands in for the library meanwhile.
"""

import os
import re
import subprocess
from pathlib import Path

from triton.backends.nvidia import driver
from triton.runtime.build import compile_so_from_file


def main() -> None:
    """Compiles the module and prints where it lies; the stub lives only as long."""
    source = Path(driver.__file__).with_name("driver.c")
    stub = Path(os.environ["TRITON_LIBCUDA_PATH"], "libcuda.so.1")
    # A linker leaves a library out that defines nothing the module uses.
    names = sorted(set(re.findall(r"\bcu[A-Z]\w+", source.read_text(encoding="utf-8"))))
    functions = "\n".join(f"void {name}(void) {{}}" for name in names)
    command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-x", "c", "-", "-o", str(stub)]
    subprocess.run(command, input=functions, text=True, check=True)
    try:
        compiled = compile_so_from_file(
            src_path=str(source),
            name="cuda_utils",
            library_dirs=driver.library_dirs(),
            include_dirs=driver.include_dirs,
            libraries=driver.libraries,
        )
    finally:
        stub.unlink()
    print(compiled)


if __name__ == "__main__":
    main()
