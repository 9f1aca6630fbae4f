"""Writes a tiny model, answers that it drew and the gradients of their losses, for `grpo_opened.py` to compare."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from llm.checkpoint import atomic_directory, resolve, write_model
from llm.data import IGNORED_LABEL
from llm.models import DecoderModel
from llm.settings.grpo import GrpoConfig
from llm.settings.model import ModelConfig
from llm.tokenization import BPETokenizer
from llm.training.grpo import GrpoTask
from llm.training.losses.policy import advantages, count_targets, policy_loss
from llm.training.rollout_batches import Drawn, concatenated
from llm.training.rollouts import Answer, RolloutEngine

LOSSES = ("grpo", "dr_grpo", "dapo", "rloo")
LONGEST = 12


def main(folder: Path) -> None:
    """Writes `model/`, `rollouts.json`, and for each loss `gradient-NAME/`."""
    tokenizer = BPETokenizer.train_from_iterator(["box of red and blue balls"], vocab_size=280)
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    model = DecoderModel(config)
    with atomic_directory(folder / "model") as temporary:
        write_model(temporary, model, tokenizer)
    engine = RolloutEngine(tokenizer, 64, 8)
    engine.take_over(model)
    prompts = [tokenizer.encode("a red box"), tokenizer.encode("blue")]
    groups = engine.draw(prompts, [engine.params(4, seed, 4 + 8 * seed) for seed in (0, 1)])
    drawn, gains = [], {name: [] for name in LOSSES}
    for prompt, group in zip(prompts, groups, strict=True):
        rewards = torch.randint(0, 3, (4,)).double().numpy()
        for name, found in gains.items():
            found.extend(advantages(rewards, settings_of(name)).tolist())
        for answer in group:
            old, reference = (torch.tensor(answer.logprobs) + 0.3 * torch.randn(len(answer.logprobs)) for _ in range(2))
            moved = Answer(answer.token_ids, tuple(old.tolist()), answer.text, answer.is_truncated)
            drawn.append(Drawn(prompt, moved, 0.0, 1.0, reference))
    rollouts = [
        {
            "prompt": list(one.prompt_ids),
            "answer": list(one.answer.token_ids),
            "old": one.answer.logprobs,
            "reference": one.reference.tolist(),
        }
        for one in drawn
    ]
    batch = concatenated(drawn)
    num_tokens = int((batch.labels != IGNORED_LABEL).sum())
    batch = replace(batch, num_answers=len(drawn), num_tokens=num_tokens)
    losses = {}
    for name in LOSSES:
        settings = settings_of(name)
        batch = replace(batch, advantages=torch.tensor(gains[name]))
        # Without a tokenizer no id is impossible, as in TRL.
        task = GrpoTask(config, settings, initial=resolve(folder / "model"))
        trained = task.build_model()
        loss = policy_loss(task._logprobs(trained, batch), batch, settings).sum / count_targets(batch, settings)
        loss.backward()
        losses[name] = float(loss.detach())
        state = trained.state_dict()
        for key, parameter in trained.named_parameters():
            state[key].copy_(parameter.grad)
        # Gradients have the names and shapes of weights, so they are written as weights are.
        with atomic_directory(folder / f"gradient-{name}") as temporary:
            write_model(temporary, trained, tokenizer)
    (folder / "rollouts.json").write_text(
        json.dumps({"rollouts": rollouts, "advantages": gains, "losses": losses, "longest": LONGEST})
    )


def settings_of(name: str) -> GrpoConfig:
    """Settings that both sides compute with."""
    return GrpoConfig(loss=name, rewards=("exact",), kl_coefficient=0.1, clip_high=0.28, max_answer_tokens=LONGEST)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
