"""Names that people bring for the settings of a run: short forms, names of other programs, misspellings."""

import difflib
from collections.abc import Iterable, Mapping

from llm.errors import ConfigError
from llm.settings.fields import flat_fields
from llm.settings.run import RunConfig

# Names of settings in other training programs, with the same meaning and unit.
_SYNONYMS = {
    "accumulation_steps": "training.gradient_accumulation_steps",
    "activation_checkpointing": "training.gradient_checkpointing",
    "adam_beta1": "optimizer.beta1",
    "adam_beta2": "optimizer.beta2",
    "adam_eps": "optimizer.eps",
    "adam_epsilon": "optimizer.eps",
    "block_size": "data.context_length",
    "context": "data.context_length",
    "context_len": "data.context_length",
    "ctx_len": "data.context_length",
    "d_model": "model.hidden_size",
    "data": "data.paths",
    "data_path": "data.paths",
    "dataset_text_field": "data.field",
    "depth": "model.num_hidden_layers",
    "dim": "model.hidden_size",
    "early_stopping_patience": "training.stop_after_validations",
    "eval_data": "data.validation_paths",
    "eval_every": "training.validate_every",
    "eval_interval": "training.validate_every",
    "eval_steps": "training.validate_every",
    "grad_accum": "training.gradient_accumulation_steps",
    "grad_accum_steps": "training.gradient_accumulation_steps",
    "grad_accumulation_steps": "training.gradient_accumulation_steps",
    "grad_clip": "optimizer.max_grad_norm",
    "gradient_accumulation": "training.gradient_accumulation_steps",
    "gradient_clip_val": "optimizer.max_grad_norm",
    "gradient_clipping": "optimizer.max_grad_norm",
    "hidden_dim": "model.hidden_size",
    "log_interval": "training.log_every",
    "logging_steps": "training.log_every",
    "learn": "data.loss_on",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.input_dropout",
    "lora_r": "lora.rank",
    "lora_rank": "lora.rank",
    "lora_target_modules": "lora.target_modules",
    "lr": "optimizer.learning_rate",
    "lr_scheduler": "optimizer.schedule",
    "lr_scheduler_type": "optimizer.schedule",
    "max_iters": "training.max_steps",
    "max_length": "data.context_length",
    "max_seq_len": "data.context_length",
    "max_seq_length": "data.context_length",
    "model_size": "training.size",
    "n_embd": "model.hidden_size",
    "n_head": "model.num_attention_heads",
    "n_heads": "model.num_attention_heads",
    "n_kv_heads": "model.num_key_value_heads",
    "n_layer": "model.num_hidden_layers",
    "n_layers": "model.num_hidden_layers",
    "num_epochs": "training.epochs",
    "num_heads": "model.num_attention_heads",
    "num_iterations": "training.max_steps",
    "num_kv_heads": "model.num_key_value_heads",
    "num_layers": "model.num_hidden_layers",
    "num_steps": "training.max_steps",
    "num_train_epochs": "training.epochs",
    "optim": "optimizer.name",
    "optimizer": "optimizer.name",
    "patience": "training.stop_after_validations",
    "report_to": "training.log_to",
    "save_every": "training.checkpoint_every",
    "save_interval": "training.checkpoint_every",
    "save_steps": "training.checkpoint_every",
    "save_total_limit": "training.keep_checkpoints",
    "scheduler": "optimizer.schedule",
    "seq_len": "data.context_length",
    "sequence_length": "data.context_length",
    "steps": "training.max_steps",
    "text_column": "data.field",
    "text_field": "data.field",
    "total_steps": "training.max_steps",
    "train_data": "data.paths",
    "train_steps": "training.max_steps",
    "val_data": "data.validation_paths",
    "validation_data": "data.validation_paths",
    "warmup": "optimizer.warmup_steps",
    "warmup_iters": "optimizer.warmup_steps",
    "wd": "optimizer.weight_decay",
}
# Names whose unit or meaning differs, and names that say too little on their own: they are only pointed out.
_RELATED = {
    "dtype": "training.precision",
    "lr_decay_iters": "training.max_steps",
    "micro_batch_size": "training.batch_size",
    "device_batch_size": "training.batch_size",
    "min_lr": "optimizer.min_learning_rate_ratio",
    "mixed_precision": "training.precision",
    "path": "tokenizer.path",
    "per_device_train_batch_size": "training.batch_size",
    "early_stopping": "training.stop_after_validations",
    "load_best_model_at_end": "training.keep_best",
    "logger": "training.log_to",
    "tensorboard": "training.log_to",
    "vocab_size": "tokenizer.vocab_size",
    "wandb": "training.log_to",
    "wandb_log": "training.log_to",
    "warmup_ratio": "optimizer.warmup_steps",
}
# Switches of other programs for what is a value here.
_VALUES = {
    "adamw": "optimizer.name=adamw",
    "assistant_only_loss": "data.loss_on=assistant",
    "completion_only_loss": "data.loss_on=assistant",
    "train_on_inputs": "data.loss_on=all",
    "train_on_responses_only": "data.loss_on=assistant",
    "adamw8bit": "optimizer.name=adamw8bit",
    "adamw_8bit": "optimizer.name=adamw8bit",
    "amp": "training.precision=auto",
    "bf16": "training.precision=bfloat16",
    "bfloat16": "training.precision=bfloat16",
    "cosine": "optimizer.schedule=cosine",
    "cpu": "training.device=cpu",
    "cuda": "training.device=cuda",
    "ddp": "training.sharding=ddp",
    "deepspeed": "training.sharding=fsdp",
    "flash_attn": "training.attention_backend=flash",
    "flash_attention": "training.attention_backend=flash",
    "float16": "training.precision=float16",
    "float32": "training.precision=float32",
    "float8": "training.precision=float8",
    "fp16": "training.precision=float16",
    "fp32": "training.precision=float32",
    "fp8": "training.precision=float8",
    "fsdp": "training.sharding=fsdp",
    "fsdp2": "training.sharding=fsdp",
    "muon": "optimizer.name=muon",
    "torch_compile": "training.compile=on",
    "wsd": "optimizer.schedule=wsd",
    "zero": "training.sharding=fsdp",
}

LIST_HINT = "\nhint: `llm train --settings` lists every setting"


def full_name(name: str, section: str | None = None) -> str | None:
    """The setting that `name` stands for without doubt, as `section.field`; None if there is none or several.

    Args:
        name: The last part of a setting's name, or a synonym.
        section: The section whose settings are meant where others have the name as well.
    """
    word = _word(name)
    own = _with_last_part(word)
    if f"{section}.{word}" in own:
        return f"{section}.{word}"
    if word in _RELATED or len(own) > 1:
        return None
    return own[0] if own else _existing(_SYNONYMS).get(word)


def _with_last_part(word: str) -> list[str]:
    return [dotted for dotted in _all_names() if dotted.partition(".")[2] == word]


def full_name_or_error(name: str) -> str:
    """The setting that `name` stands for.

    Raises:
        ConfigError: No setting has the name, or several have; the hint names the nearest.
    """
    found = full_name(name)
    if found is None:
        raise ConfigError(f"`{name}` is not the name of one setting{hint_for(name) or LIST_HINT}")
    return found


def hint_for(name: str) -> str:
    """A hint with the setting of a run that `name` is short for, a synonym of, or a misspelling of; else nothing."""
    word, names = _word(name), _by_last_part()
    if word in _VALUES:
        return f"\nhint: did you mean `{_VALUES[word]}`?"
    if len(own := _with_last_part(word)) > 1 and word not in _RELATED:
        return f"\nhint: did you mean {' or '.join(f'`{dotted}=…`' for dotted in own)}?"
    nearest = [word] if word in names else difflib.get_close_matches(word, names, n=1, cutoff=0.7)
    return f"\nhint: did you mean `{names[nearest[0]]}=…`?" if nearest else ""


def other_section(name: str) -> str | None:
    """The setting whose last part or synonym is exactly `name`, in whichever section, or the value of one."""
    return _VALUES.get(_word(name)) or _by_last_part().get(_word(name))


def suggest(name: str, valid: Iterable[str]) -> str:
    """A sentence's end that names the nearest valid word and all of them."""
    words = sorted(valid)
    nearest = difflib.get_close_matches(name, words, n=1, cutoff=0.5)
    guess = f"did you mean `{nearest[0]}`? " if nearest else ""
    return f"{guess}Valid: {', '.join(words)}"


def _word(name: str) -> str:
    return name.strip().lstrip("-").replace("-", "_").lower()


def _all_names() -> list[str]:
    return [dotted for dotted, _ in flat_fields(RunConfig)]


def _existing(names: Mapping[str, str]) -> dict[str, str]:
    known = set(_all_names())
    return {name: dotted for name, dotted in names.items() if dotted in known}


def _by_last_part() -> dict[str, str]:
    """Every setting by the last part of its name, the least nested one of several, and by its synonyms."""
    nested_first = sorted(_all_names(), key=lambda dotted: -dotted.count("."))
    names = {dotted.rpartition(".")[2]: dotted for dotted in nested_first}
    return names | _existing(_SYNONYMS) | _existing(_RELATED)
