"""Writes a tiny model, another to compare with, 20 pairs and the gradient of each loss, for `preference_opened.py`."""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from llm.checkpoint import Run, atomic_directory, resolve, save_tensors, write_model
from llm.data import PreferenceDataModule, TokenBatch
from llm.models import DecoderModel
from llm.settings.model import ModelConfig
from llm.settings.preference import PreferenceConfig
from llm.settings.run import DataConfig, RunConfig, TrainingConfig
from llm.tokenization import BaseTokenizer, BPETokenizer, ChatTemplate, use_chat_template
from llm.training.assembly import build_rows, build_task
from llm.training.distributed import Distributed
from llm.training.preferences import PreferenceTask
from llm.training.reference import attach_reference
from llm.training.rows import encoder_of
from tests.unit.chat_rows import write_rows
from tests.unit.preference_rows import as_messages, pair

# TRL counts all that follows the prompt as the answer, so nothing follows it here.
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LOSSES = (
    PreferenceConfig(loss="dpo", beta=0.3),
    PreferenceConfig(loss="ipo", beta=0.2),
    PreferenceConfig(loss="simpo", beta=2.0, gamma_ratio=0.5),
    PreferenceConfig(loss="orpo", beta=0.4),
    PreferenceConfig(loss="kto", beta=0.3, wanted_weight=1.0, unwanted_weight=1.5),
)


def main(folder: Path) -> None:
    """Writes `model/`, `reference/`, rows, and for each loss its value, its ids and its gradient."""
    rows = [pair(number) | {"prompt": f"What colour is box {number}?"} for number in range(20)]
    write_rows(folder / "pairs.jsonl", map(as_messages, rows))
    labels = [
        {"prompt": row["prompt"], "completion": row["chosen" if number % 2 else "rejected"], "label": bool(number % 2)}
        for number, row in enumerate(map(as_messages, rows))
    ]
    write_rows(folder / "labels.jsonl", labels)
    tokenizer = BPETokenizer.train_from_iterator(
        [text for row in rows for text in row.values()],
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    use_chat_template(tokenizer, ChatTemplate(TEMPLATE))
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        max_position_embeddings=256, initializer_range=0.2,
    )  # fmt: skip
    for seed, name in enumerate(("model", "reference")):
        torch.manual_seed(seed)
        model = DecoderModel(config)
        if name == "reference":
            for parameter, other in zip(
                model.parameters(), resolve(folder / "model").model().parameters(), strict=True
            ):
                parameter.data = other.data + 0.02 * torch.randn_like(other)
        with atomic_directory(folder / name) as temporary:
            write_model(temporary, model, tokenizer)
    for settings in LOSSES:
        _write(folder, settings, config, tokenizer)


def _write(folder: Path, settings: PreferenceConfig, model: ModelConfig, tokenizer: BaseTokenizer) -> None:
    rows = folder / ("labels.jsonl" if settings.loss == "kto" else "pairs.jsonl")
    config = RunConfig(
        model=model,
        data=DataConfig(kind="preference", paths=(str(rows),), validation_fraction=0.0, context_length=256),
        training=TrainingConfig(init_from=str(folder / "reference"), precision="float32", device="cpu", batch_size=20),
        preference=settings,
    )
    run = Run(folder / settings.loss / "run")
    PreferenceDataModule.prepare(run.data, config.data, encoder_of(config, tokenizer))
    data = build_rows(config, run.data)
    assert isinstance(data, PreferenceDataModule)
    attach_reference(config, run, data, Distributed.start("cpu"))
    batch = data.train_dataset().batch(np.arange(20))
    task = build_task(config, tokenizer, resolve(folder / "model"))
    assert isinstance(batch, TokenBatch)
    assert isinstance(task, PreferenceTask)
    network = task.build_model()
    with torch.no_grad():
        task.prepare(network, [batch])
    loss = task.loss_sum(network, batch) / task.count_targets(batch)
    loss.backward()
    state = network.state_dict()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            state[name].copy_(parameter.grad)
    # Gradients have the names and shapes of weights, so they are written as weights are.
    with atomic_directory(folder / settings.loss / "gradient") as temporary:
        write_model(temporary, network, tokenizer)
    save_tensors(folder / settings.loss / "loss.safetensors", {"loss": loss.detach()})
    about = {name: getattr(settings, name) for name in settings.__struct_fields__}
    sequences = list(zip(batch.token_ids.split(batch.lengths), batch.labels.split(batch.lengths), strict=True))
    about |= {
        "ids": [[*ids.tolist(), labels.tolist()[-1]] for ids, labels in sequences],
        "answers": [[False, *(labels >= 0).tolist()] for _, labels in sequences],
    }
    (folder / settings.loss / "about.json").write_text(json.dumps(about))
    print(f"{settings.loss}: loss {loss.item():.6f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
