"""The example configs load and fit their comments, and other programs' configurations can be said in ours."""

import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import torch

from llm.models import DecoderModel
from llm.models.costs import num_parameters
from llm.settings.merge import load_run_config
from llm.training.optim import build_optimizer

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "examples" / "configs").glob("*.toml"))
PARAMETERS = {
    "shakespeare_char": 0.8e6,
    "shakespeare_char_llama": 0.79e6,
    "tinystories_15m": 15e6,
    "gpt2_124m": 124e6,
    "llama_135m": 135e6,
}

# Each key of nanoGPT's train.py and model.py, and the settings that say the same of its values there.
NANOGPT = {
    "batch_size=12": ["training.batch_size=12"],
    "gradient_accumulation_steps=40": ["training.batch_size=480", "training.gradient_accumulation_steps=40"],
    "block_size=1024": ["model.max_position_embeddings=1024"],
    "n_layer=12": ["model.num_hidden_layers=12"],
    "n_head=12": ["model.hidden_size=768", "model.num_attention_heads=12", "model.num_key_value_heads=12"],
    "n_embd=768": ["model.hidden_size=768", "model.intermediate_size=3072"],
    "dropout=0.2": ["model.dropout=0.2", "model.attention_dropout=0.2"],
    "bias=False": [
        "model.norm=layer_norm_no_bias",
        "model.attention_bias=false",
        "model.attention_output_bias=false",
        "model.mlp_bias=false",
    ],
    "vocab_size=50304": ["model.vocab_size=50304"],
    "learning_rate=6e-4": ["optimizer.learning_rate=6e-4"],
    "max_iters=600000": ["training.max_steps=600000"],
    "weight_decay=1e-1": ["optimizer.weight_decay=1e-1"],
    "beta1=0.9": ["optimizer.beta1=0.9"],
    "beta2=0.95": ["optimizer.beta2=0.95"],
    "grad_clip=1.0": ["optimizer.max_grad_norm=1.0"],
    "grad_clip=0.0": ["optimizer.max_grad_norm=null"],
    "decay_lr=True": ["optimizer.schedule=cosine"],
    "decay_lr=False": ["optimizer.schedule=constant", "optimizer.warmup_steps=0"],
    "warmup_iters=2000": ["optimizer.warmup_steps=2000"],
    "lr_decay_iters=600000": ["training.max_steps=600000"],
    "min_lr=6e-5": ["optimizer.learning_rate=6e-4", "optimizer.min_learning_rate_ratio=0.1"],
    "eval_interval=2000": ["training.validate_every=2000"],
    "log_interval=1": ["training.log_every=1"],
    "init_from='gpt2'": ["model.family=gpt2"],  # and `training.init_from`, which needs the weights
    "wandb_log=True": ["training.log_to=wandb"],
    "dataset='openwebtext'": ["data.paths=openwebtext/*.txt"],
    "device='cuda'": ["training.device=cuda"],
    "dtype='bfloat16'": ["training.precision=bfloat16"],
}
# The same of nanochat's base_train.py.
NANOCHAT = {
    "depth=20": ["model.num_hidden_layers=20"],
    "aspect_ratio=64": ["model.hidden_size=1280"],
    "head_dim=128": ["model.head_dim=128"],
    "max_seq_len=2048": ["model.max_position_embeddings=2048"],
    "num_iterations=1000": ["training.max_steps=1000"],
    "target_param_data_ratio=20": ["training.size=561M"],  # the plan trains on 20 tokens per parameter
    "device_batch_size=32": ["training.gradient_accumulation_steps=8", "training.batch_size=256"],
    "total_batch_size=524288": ["training.batch_size=256", "model.max_position_embeddings=2048"],
    "embedding_lr=0.2": ['optimizer.groups=[{match="embed_tokens", learning_rate=0.2}]'],
    "unembedding_lr=0.004": ['optimizer.groups=[{match="lm_head", learning_rate=0.004}]'],
    "matrix_lr=0.02": ["optimizer.name=muon", "optimizer.learning_rate=0.02"],
    "weight_decay=0.0": ["optimizer.weight_decay=0.0"],
    "adam_beta1=0.8": ["optimizer.beta1=0.8"],
    "adam_beta2=0.95": ["optimizer.beta2=0.95"],
    "grad_clip=1.0": ["optimizer.max_grad_norm=1.0"],
    "warmup_ratio=0.0": ["optimizer.warmup_steps=0"],
    "warmdown_ratio=0.2": ["optimizer.schedule=wsd", "optimizer.decay_fraction=0.2"],
    "final_lr_frac=0.0": ["optimizer.min_learning_rate_ratio=0.0"],
    "resume_from_step=-1": [],  # `llm train --resume RUN --from-step N`
    "eval_every=250": ["training.validate_every=250"],
    "sample_every=2000": ["training.sample_tokens=100"],
    "save_every=1000": ["training.checkpoint_every=1000"],
    "run='dummy'": ["training.log_to=wandb"],
    "qk_norm": ["model.qk_norm=true"],
    "relu^2 is not there: relu": ["model.mlp=gelu", "model.hidden_act=relu"],
    "logit softcap=15": ["model.final_logit_softcapping=15.0"],
    "untied": ["model.tie_word_embeddings=false"],
    "window_pattern": ["model.sliding_window=1024"],
}


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("config_estimates", ROOT / "tools" / "config_estimates.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_an_example_config_loads_and_has_its_estimate(file: Path) -> None:
    config = load_run_config(file, environ={})
    estimates = tool()
    full = estimates.with_vocabulary(config)
    assert num_parameters(full.model) == pytest.approx(PARAMETERS[file.stem], rel=0.06)
    assert estimates.estimate(config) in file.read_text(encoding="utf-8"), "run `python tools/config_estimates.py`"
    with torch.device("meta"):
        build_optimizer(DecoderModel(full.model), full.optimizer)


def test_there_is_a_config_of_each_kind() -> None:
    assert {file.stem for file in CONFIGS} == set(PARAMETERS)


@pytest.mark.parametrize("overrides", [*NANOGPT.values(), *NANOCHAT.values()], ids=[*NANOGPT, *NANOCHAT])
def test_a_key_of_nanogpt_and_nanochat_can_be_said(overrides: list[str]) -> None:
    values = msgspec.to_builtins(load_run_config(overrides=overrides, environ={}))
    for override in overrides:
        name, _, text = override.partition("=")
        section, field = name.split(".")
        got = values[section][field]
        try:
            wanted = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            wanted = None if text == "null" else text
        if isinstance(wanted, list):
            assert wanted[0].items() <= got[0].items()
        else:
            assert got in (wanted, (wanted,), [wanted])
