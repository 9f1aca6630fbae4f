"""Checkpoints and runs on disk: the directories that every stage takes and returns.

A *checkpoint* is a directory with `config.json`, `model.safetensors`, `tokenizer.json` and `tokenizer_config.json` in
Hugging Face's layout. A *run* holds checkpoints under `checkpoints/step_00000500/`; every function that takes a
checkpoint also takes a run and uses its newest complete checkpoint.
"""

from llm.checkpoint.atomic import COMPLETE, atomic_directory, foreign_in, sync, unfinished, write_atomically
from llm.checkpoint.checkpoint import Checkpoint
from llm.checkpoint.layouts import AdapterLayout, ModelLayout
from llm.checkpoint.model_files import WeightFile, plan_files, saved_state, write_description, write_model
from llm.checkpoint.resolve import given_name, load_model, read_checkpoint, resolve
from llm.checkpoint.run import Run, step_of
from llm.checkpoint.weights import DTYPES, load_tensors, read_json, save_tensors, sharded_as

__all__ = [
    "COMPLETE",
    "DTYPES",
    "AdapterLayout",
    "Checkpoint",
    "ModelLayout",
    "Run",
    "WeightFile",
    "atomic_directory",
    "foreign_in",
    "given_name",
    "load_model",
    "load_tensors",
    "plan_files",
    "read_checkpoint",
    "read_json",
    "resolve",
    "save_tensors",
    "saved_state",
    "sharded_as",
    "step_of",
    "sync",
    "unfinished",
    "write_atomically",
    "write_description",
    "write_model",
]
