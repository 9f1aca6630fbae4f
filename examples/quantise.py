"""Store a checkpoint's weights in 4 bits and compare the result with the original.

Usage: python examples/quantise.py runs/demo runs/demo-int4 corpus.txt
"""

import sys
from pathlib import Path

from llm import LLM, quantize


def main(path: str, out: str, calibration: str) -> None:
    """Quantises by GPTQ, which learns from the calibration text; further text of it is held out for the comparison."""
    report = quantize(path, out, scheme="int4", method="gptq", calibration=(calibration,), calibration_tokens=4096)
    print(f"{report.bits_per_weight:.2f} bits a weight, {report.bytes_after / report.bytes_before:.2f} of the bytes")
    print(f"{report.kl:.4f} nats of divergence a token")
    print(f"perplexity {report.original_perplexity:.2f} → {report.perplexity:.2f}")

    text = Path(calibration).read_text(encoding="utf-8")[:20]
    for name, checkpoint in (("original", path), ("quantised", out)):
        model = LLM(checkpoint)
        params = model.sampling_params(max_tokens=16, temperature=0)
        print(f"{name}: {model.generate(text, params).text!r}")


if __name__ == "__main__":
    if len(sys.argv) != 4 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(*sys.argv[1:])
