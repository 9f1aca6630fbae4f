"""Writes the settings tables of the documentation from the declarations: `make docs-tables`.

A table stands between `<!-- settings: NAME -->` and `<!-- end -->`, in any page below `docs/`.
"""

import re
import sys
from pathlib import Path

import msgspec

from llm.settings.benchmark import ServingBenchmark
from llm.settings.distillation import DistillationConfig
from llm.settings.engine import EngineConfig
from llm.settings.evaluation import EvaluationConfig
from llm.settings.fields import declared, default_of
from llm.settings.grpo import GrpoConfig
from llm.settings.keys import ApiKey
from llm.settings.kv_events import KVEventsConfig
from llm.settings.model import ExpertsConfig, LatentConfig, ModelConfig, RopeScaling
from llm.settings.preference import PreferenceConfig
from llm.settings.quantization import QuantizationConfig
from llm.settings.replicas import ReplicaConfig
from llm.settings.run import DataConfig, GenerationConfig, LoraConfig, OptimizerConfig, TokenizerConfig, TrainingConfig
from llm.settings.sampling import SamplingParams
from llm.settings.server import ServerConfig

# Name of a table: the prefix of its settings and the struct that declares them.
TABLES: dict[str, tuple[str, type[msgspec.Struct]]] = {
    "model": ("model.", ModelConfig),
    "experts": ("model.experts.", ExpertsConfig),
    "latent": ("model.latent.", LatentConfig),
    "rope_scaling": ("model.rope_scaling.", RopeScaling),
    "tokenizer": ("tokenizer.", TokenizerConfig),
    "data": ("data.", DataConfig),
    "optimizer": ("optimizer.", OptimizerConfig),
    "training": ("training.", TrainingConfig),
    "generation": ("generation.", GenerationConfig),
    "lora": ("lora.", LoraConfig),
    "grpo": ("grpo.", GrpoConfig),
    "preference": ("preference.", PreferenceConfig),
    "distillation": ("distillation.", DistillationConfig),
    "SamplingParams": ("", SamplingParams),
    "EngineConfig": ("EngineConfig.", EngineConfig),
    "ServerConfig": ("", ServerConfig),
    "KVEventsConfig": ("", KVEventsConfig),
    "ReplicaConfig": ("", ReplicaConfig),
    "ServingBenchmark": ("", ServingBenchmark),
    "ApiKey": ("", ApiKey),
    "EvaluationConfig": ("", EvaluationConfig),
    "QuantizationConfig": ("", QuantizationConfig),
}
_MARKED = re.compile(r"(<!-- settings: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(name: str) -> str:
    """The rows of one table: setting, default, description."""
    prefix, kind = TABLES[name]
    rows = [_row(prefix, field) for field in msgspec.structs.fields(kind)]
    return "".join(f"{row}\n" for row in ("| Setting | Default | Description |", "|---|---|---|", *rows))


def filled(text: str) -> str:
    """A page with every marked table as the declarations have it."""
    return _MARKED.sub(lambda found: f"{found[1]}{table(found[2])}{found[3]}", text)


def _row(prefix: str, field: msgspec.structs.FieldInfo) -> str:
    value = default_of(field)
    description = declared(field.type)[1].description
    if value is msgspec.NODEFAULT:
        return f"| `{prefix}{field.name}` | required | {description} |"
    if isinstance(value, msgspec.Struct):
        return f"| `{prefix}{field.name}` | `{type(value).__name__}()` | {description} |"
    return f"| `{prefix}{field.name}` | `{msgspec.json.encode(value).decode()}` | {description} |"


def main() -> None:
    """Rewrites the tables of every page."""
    for page in sorted((Path(__file__).parents[1] / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            page.write_text(new, encoding="utf-8")
            sys.stdout.write(f"{page}\n")


if __name__ == "__main__":
    main()
