"""Writes a tiny model, rows and the gradient of their loss, packed, for `sft_opened.py` to compare."""

import sys
from pathlib import Path

import numpy as np
import torch

from llm.checkpoint import atomic_directory, resolve, save_tensors, write_model
from llm.data import ChatDataModule
from llm.models import DecoderModel
from llm.settings.model import ModelConfig
from llm.settings.run import DataConfig
from llm.tokenization import BPETokenizer, ChatTemplate, use_chat_template
from llm.training import LanguageModelingTask
from llm.training.rows import row_encoder
from tests.unit.chat_rows import dialogue, turn, write_rows

# TRL finds the assistant's turns by these blocks only.
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def main(folder: Path) -> None:
    """Writes `model/`, `rows.jsonl` and `gradient.safetensors`."""
    rows = [dialogue(number) for number in range(11)]
    rows.append({"messages": [*rows[0]["messages"], turn("user", "And box 5?"), turn("assistant", "Green.")]})
    file = write_rows(folder / "rows.jsonl", rows)
    texts = [message["content"] for row in rows for message in row["messages"]]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = BPETokenizer.train_from_iterator(texts, vocab_size=300, special_tokens=special)
    use_chat_template(tokenizer, ChatTemplate(TEMPLATE))
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        max_position_embeddings=256, initializer_range=0.2,
    )  # fmt: skip
    with atomic_directory(folder / "model") as temporary:
        write_model(temporary, DecoderModel(config), tokenizer)
    data = DataConfig(kind="chat", paths=(str(file),), packing=True, validation_fraction=0.0)
    ChatDataModule.prepare(folder / "data", data, row_encoder(tokenizer, "assistant"))
    dataset = ChatDataModule(folder / "data", 256, data).train_dataset()
    task = LanguageModelingTask(config, initial=resolve(folder / "model"))
    model = task.build_model()
    batch = dataset.batch(np.arange(len(dataset)))
    loss = task.loss_sum(model, batch) / task.count_targets(batch)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    state = model.state_dict()
    for name, gradient in gradients.items():
        state[name].copy_(gradient)
    # Gradients have the names and shapes of weights, so they are written as weights are.
    with atomic_directory(folder / "gradient") as temporary:
        write_model(temporary, model, tokenizer)
    save_tensors(
        folder / "loss.safetensors", {"loss": loss.detach(), "targets": torch.tensor(task.count_targets(batch))}
    )
    print(f"{len(rows)} rows in {len(dataset)} packed samples, loss {loss.item():.6f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
