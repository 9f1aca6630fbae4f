"""One fine-tuning loop of `bench_tuning`, in a process of its own: `python tuning_loops.py NAME CASE_DIRECTORY`.

A step is taken for each line of standard input. A line of JSON tells its seconds, the tokens that the model computed
and the peak of resident memory; the first line tells what a step reads in the mean without padding.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training_loops import peak_mib

LAST_STEP = 10_000


class Gate:
    """Lets the parent decide when the next step is taken."""

    def __init__(self) -> None:
        self.began = 0.0
        self.positions = 0

    def tell(self, **values: Any) -> None:
        """Prints a line for the parent, and waits for its answer."""
        print(json.dumps({"seconds": time.perf_counter() - self.began, "peak_mib": peak_mib(), **values}))
        sys.stdout.flush()
        if not sys.stdin.readline():
            os._exit(0)
        self.began, self.positions = time.perf_counter(), 0


def ours(case: dict[str, Any], variant: str, folder: Path) -> None:
    """This package's loop through `llm.sft` and `llm.dpo`."""
    import llm
    from llm.checkpoint import Run
    from llm.training import LanguageModelingTask
    from llm.training.assembly import build_rows

    gate, out = Gate(), folder / f"run-{variant}"
    count = LanguageModelingTask.count_positions

    def counted(task: LanguageModelingTask, batch: Any) -> int:
        gate.positions += len(batch.token_ids)
        return count(task, batch)

    LanguageModelingTask.count_positions = counted  # type: ignore[method-assign]

    class Gated(llm.Callback):
        def on_fit_start(self, start: Any) -> None:  # noqa: ARG002
            config = Run(out).read_config()
            data = build_rows(config, Run(out).data)
            useful = data.num_train_tokens / data.train_dataset().epoch_samples * config.training.batch_size
            gate.tell(useful_tokens=useful)

        def on_step_end(self, metrics: llm.training.StepMetrics, should_log: bool) -> None:  # noqa: ARG002
            gate.tell(positions=gate.positions, loss=metrics.loss)

    named = {"context_length": case["length"], "batch_size": case["batch"], "max_steps": LAST_STEP, "device": "cpu"}
    named |= {"precision": case["precision"], "validation_fraction": 0.0, "checkpoint_every": LAST_STEP}
    named |= {"sample_tokens": 0, "gradient_accumulation_steps": 1, "learning_rate": 1e-5, "callbacks": [Gated()]}
    model = case["quantised"] if "qlora" in variant else folder / "model"
    overrides = ["lora.rank=16"] if "lora" in variant else []
    if variant == "dpo":
        llm.dpo(
            model, folder / "pairs.jsonl", out=out, overrides=overrides, **named | {"batch_size": case["batch"] // 2}
        )
    else:
        llm.sft(model, folder / "rows.jsonl", out=out, overrides=overrides, packing=variant == "packed", **named)


def trl(case: dict[str, Any], variant: str, folder: Path) -> None:
    """TRL's trainer with its own defaults but for batch, length, precision and what only takes time."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(case["threads"])
    gate = Gate()
    rows = [json.loads(line)["messages"] for line in (folder / "rows.jsonl").read_text().splitlines()]
    data = Dataset.from_list([{"prompt": row[:-1], "completion": row[-1:]} for row in rows])

    class Gated(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            if state.global_step == 0:
                lengths = [len(one["input_ids"]) for one in trainer.train_dataset]
                gate.tell(useful_tokens=sum(lengths) / len(lengths) * case["batch"])

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            gate.tell(positions=gate.positions)

    class Counting(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **named: Any) -> Any:
            gate.positions += inputs["input_ids"].numel()
            return super().compute_loss(model, inputs, *args, **named)

    settings = SFTConfig(
        output_dir=str(folder / f"trl-{variant}"), per_device_train_batch_size=case["batch"], max_steps=LAST_STEP,
        max_length=case["length"], bf16=case["precision"] == "bfloat16", use_cpu=True, packing=False,
        gradient_checkpointing=False, report_to=[], save_strategy="no", learning_rate=1e-5, disable_tqdm=True,
        logging_steps=LAST_STEP, dataloader_num_workers=0,
    )  # fmt: skip
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if "lora" in variant else None
    trainer = Counting(
        model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
        args=settings,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        peft_config=adapter,
        callbacks=[Gated()],
    )
    trainer.train()


LOOPS: dict[str, Callable[[dict[str, Any], str, Path], None]] = {"ours": ours, "trl": trl}


if __name__ == "__main__":
    directory = Path(sys.argv[2])
    family, _, kind = sys.argv[1].partition("-")
    LOOPS[family](json.loads((directory / "case.json").read_text()), kind, directory)
