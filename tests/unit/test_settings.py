"""A setting is declared once: its option, wire field, documentation and Rust side follow from the declaration."""

import ast
import re
from pathlib import Path

import msgspec
import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from llm.cli.main import app
from llm.cli.options import NamingOptions, with_options
from llm.errors import ConfigError
from llm.settings.engine import EngineConfig, NgramSpeculation
from llm.settings.fields import default_of
from llm.settings.merge import load_run_config
from llm.settings.sampling import UNPRINTED, SamplingParams
from llm.settings.server import ServerConfig, load_server_config, server_config

ROOT = Path(__file__).parents[2]
PYTHON = [*sorted((ROOT / "python" / "llm").rglob("*.py")), ROOT / "python" / "llm" / "_rust.pyi"]
RUST = sorted((ROOT / "rust" / "src").rglob("*.rs"))
# Files that use a setting's word for something else, or name the setting only in an error.
NO_DECLARATION = {
    "block_size": {
        "kernels/cache.rs",
        "serving/answer_metrics.py",
        "serving/kv_events.py",
        "settings/names.py",
    },  # the layout of a cache, a label of vLLM's metrics, a key of its events, and a synonym of the context length
    "num_draft_tokens": {"settings/server.py"},
    "top_k": {"settings/distillation.py", "settings/grpo.py"},  # of a divergence, and refused
    "logprobs": {
        "training/rollouts.py",
        "inference/outputs.py",
        "engine/outputs.rs",
        "python/engine.rs",
        "sampling/sample.rs",
    },
    "max_tokens": {"_rust.pyi", "python/simulation.rs", "scheduler/load.rs", "scheduler/request.rs"}
    | {
        "serving/errors.py",
        "serving/parsing.py",
        "serving/answers/messages.py",
        "benchmark/load.py",
        "serving/startup.py",
    },
    "num_threads": {"cli/tokenizer/bench.py", "cli/tokenizer/train.py", "python/tokenizer.rs", "training/launch.py"}
    | {"training/resumption.py", "kernels/attention/problem.rs", "python/attention.rs"}
    | {"python/tokenizer_batch.rs", "tokenizer/trainer/mod.rs"},
    "prompt_logprobs": {"inference/outputs.py", "engine/outputs.rs", "python/engine.rs", "serving/parsing.py"}
    | {"serving/protocol/chat.py", "serving/protocol/completions.py"},
    "seed": {"_rust.pyi", "settings/run.py", "settings/simulation.py", "python/simulation.rs", "scheduler/load.rs"}
    | {"settings/benchmark.py", "benchmark/compare.py"},
    "skip_special_tokens": {"_rust.pyi", "cli/tokenizer/decode.py", "python/tokenizer.rs"}
    | {"python/tokenizer_batch.rs"},
    # The finish reason, and a key of tokenizer files.
    "stop": {"_rust.pyi", "inference/outputs.py", "engine/outputs.rs", "tokenization/chat.py"}
    | {"tokenization/readers/gguf.py", "tokenizer/formats/read.rs"},
    # A request to any server, a divisor of logits, and that of a divergence.
    "top_p": {"settings/grpo.py"},
    "temperature": {"benchmark/load.py", "models/logprobs.py", "settings/distillation.py"},
    # What an answer tells, under vLLM's name.
    "max_model_len": {"serving/protocol/tokenize.py"},
}


def python_places(file: Path) -> set[str]:
    """Names declared in a Python file: annotated fields, whole strings, and parameters of commands and of the stub."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            fields = [part.target for part in node.body if isinstance(part, ast.AnnAssign)]
            found |= {field.id for field in fields if isinstance(field, ast.Name)}
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            found.add(node.value.removeprefix("--").replace("-", "_"))
        if isinstance(node, ast.arg) and (file.suffix == ".pyi" or "cli" in file.parts):
            found.add(node.arg)
        if isinstance(node, ast.keyword) and node.arg and "cli" in file.parts:
            found.add(node.arg)
    return found


def rust_places(file: Path) -> set[str]:
    """Names declared in a Rust file: public fields, whole strings, and arguments of functions Python calls."""
    text = re.sub(r"//[^\n]*", "", file.read_text(encoding="utf-8"))
    found = set(re.findall(r"\bpub (\w+)(?::|,)", text)) | set(re.findall(r'"(\w+)"', text))
    if "python" in file.parts:
        found |= set(re.findall(r"^\s*(\w+): [\w<>\[\]&', ]+,$", text, re.MULTILINE))
    return found


PLACES = {str(file.relative_to(ROOT / "python" / "llm")): python_places(file) for file in PYTHON} | {
    str(file.relative_to(ROOT / "rust" / "src")): rust_places(file) for file in RUST
}


# The request types of the APIs that other companies define: their words are theirs, so the folder counts once.
PROTOCOL = "serving/protocol/"


def places_of(name: str) -> set[str]:
    files = {file for file, names in PLACES.items() if name in names} - NO_DECLARATION.get(name, set())
    return {PROTOCOL if file.startswith(PROTOCOL) else file for file in files}


@pytest.mark.parametrize("name", SamplingParams.__struct_fields__)
def test_a_sampling_field_is_declared_in_at_most_four_places(name: str) -> None:
    """A place is a file that declares or retypes the field, however often, rather than using its value.

    In Python that is an annotated field of a class, a string that is the whole name (the key of a table or of a
    mapping), and in the command line and the stub also a parameter or keyword. In Rust that is a public field, a whole
    string, and an argument of a function that Python calls. Reading an attribute is no place; documentation tables and
    options of the command line are derived, so they are none either.
    """
    assert len(places_of(name)) <= 4, sorted(places_of(name))


# `speculative` holds a struct of settings, which are counted themselves.
LIMITS = [*EngineConfig.__struct_fields__, *NgramSpeculation.__struct_fields__]


@pytest.mark.parametrize("name", [name for name in LIMITS if name != "speculative"])
def test_a_limit_of_the_engine_is_declared_in_at_most_three_places(name: str) -> None:
    """A place is counted as for a sampling field."""
    assert len(places_of(name)) <= 3, sorted(places_of(name))


def test_words_that_are_no_declaration_are_still_there() -> None:
    stale = {
        (name, file) for name, files in NO_DECLARATION.items() for file in files if name not in PLACES.get(file, ())
    }
    assert stale == set()


def test_rust_and_python_have_the_same_defaults() -> None:
    declared = re.compile(r"pub (\w+): [^=\n]+ = ([^\n]+),$", re.MULTILINE)
    for kind, files in (
        (SamplingParams, ("sampling/params.rs", "engine/params.rs")),
        (EngineConfig, ("scheduler/config.rs",)),
        (NgramSpeculation, ("speculation/ngram.rs",)),
    ):
        text = "".join((ROOT / "rust" / "src" / file).read_text(encoding="utf-8") for file in files)
        ours = {field.name: default_of(field) for field in msgspec.structs.fields(kind)}
        theirs = {name: value for name, value in declared.findall(text) if name in ours}
        assert len(theirs) >= 3
        for name, value in theirs.items():
            if ours[name] is not None and value[0].isdigit():
                assert float(value) == ours[name], name
            if value in ("true", "false"):
                assert (value == "true") == ours[name], name


def test_server_takes_limits_of_its_engine_as_keywords() -> None:
    config = server_config(port=0, max_model_len=64, engine=EngineConfig(block_size=8))
    assert config == ServerConfig(port=0, engine=EngineConfig(max_model_len=64, block_size=8))
    with pytest.raises(ConfigError, match="unknown setting `max_model_length`; did you mean `max_model_len`"):
        server_config(max_model_length=64)
    with pytest.raises(ConfigError, match="`max_running_requests` must be `int` >= 1, got 0"):
        server_config(max_running_requests=0)


def test_server_is_configured_by_a_file_then_the_environment_then_keywords(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    engine_table = '[engine]\nblock_size = 4\n[engine.speculative]\nmethod = "ngram"'
    file.write_text(f"port = 1\ngrace_s = 3\nmax_model_len = 8\n{engine_table}")
    environ = {
        "LLM_SERVER__PORT": "2",
        "LLM_SERVER__API_KEYS": '["a", "b"]',
        "LLM_SERVER__ENGINE__BLOCK_SIZE": "8",
        "LLM_SERVER_CONFIG": "unrelated",
        "LLM_TRAINING__EPOCHS": "3",
    }
    config = load_server_config(str(file), {"port": 3, "max_running_requests": 5}, environ)
    engine = EngineConfig(block_size=8, max_model_len=8, max_running_requests=5, speculative=NgramSpeculation())
    assert config == ServerConfig(port=3, grace_s=3.0, api_keys=("a", "b"), engine=engine)
    assert load_server_config(None, {}, {}) == ServerConfig()
    # As the chart writes them: objects in JSON's spelling.
    objects = {
        "LLM_SERVER__ENGINE__SPECULATIVE": '{"method":"ngram","num_draft_tokens":4}',
        "LLM_SERVER__KV_EVENTS_CONFIG": '{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:5557"}',
    }
    config = load_server_config(None, {}, objects)
    assert config.engine.speculative == NgramSpeculation(num_draft_tokens=4)
    assert (config.kv_events_config.publisher, config.kv_events_config.endpoint) == ("zmq", "tcp://*:5557")
    assert load_run_config(environ=environ).training.epochs == 3


def test_names_of_options_lead_to_their_settings(tmp_path: Path) -> None:
    settings = {*ServerConfig.__struct_fields__, *EngineConfig.__struct_fields__}
    options = {option.opts[0] for option in get_command(app).commands["serve"].params if option.name != "path"}
    others = {option for option in options if option[2:].replace("-", "_") not in settings} - {"--config"}
    assert {"--ngram-drafts", "--api-key", "--no-prefix-caching"} <= others
    file = tmp_path / "server.toml"
    for option in others:
        name = option[2:].replace("-", "_")
        with pytest.raises(ConfigError) as caught:
            load_server_config(None, {}, {f"LLM_SERVER__{name.upper()}": "true"})
        problem, hint = str(caught.value).splitlines()
        assert problem == f"`LLM_SERVER__{name.upper()}='…'` in the environment names no setting"
        assert hint.startswith(f"hint: the setting of `{option}` is written `LLM_SERVER__")
        variable, value = hint.split("`")[3].split("=", 1)
        load_server_config(None, {}, {variable: value.strip("'").replace("BYTES", "1000")})
        file.write_text(f"{name} = true")
        with pytest.raises(ConfigError) as caught:
            load_server_config(str(file), {}, {})
        problem, hint = str(caught.value).splitlines()
        assert problem == f"`{name} = …` in {file} names no setting"
        file.write_text(hint.split("`")[3].replace("BYTES", "1000"))
        load_server_config(str(file), {}, {})


@pytest.mark.parametrize(
    ("text", "environ", "message"),
    [
        (
            "prot = 1",
            {},
            "unknown setting `prot`; did you mean `port`",
        ),
        ("[engine]\nblock_sice = 1", {}, "unknown setting `engine.block_sice`; did you mean `block_size`"),
        (
            "",
            {"LLM_SERVER__PROT": "1"},
            "the variable `LLM_SERVER__PROT` names no setting: unknown setting `prot`; did you mean `port`",
        ),
        ("port = 70000", {}, "`port` must be `int` <= 65535, got 70000"),
        ("port = ", {}, "is not valid TOML"),
        (
            '[engine]\npacked_weights = "maybe"',
            {},
            "`engine.packed_weights` must be one of auto, true, false, got 'maybe'",
        ),
        ('tls_key = "key.pem"', {}, "`tls_key` needs `tls_certificate`, got none"),
    ],
)
def test_wrong_configuration_of_a_server_names_the_setting(
    tmp_path: Path, text: str, environ: dict[str, str], message: str
) -> None:
    file = tmp_path / "server.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_server_config(str(file), {}, environ)
    with pytest.raises(ConfigError, match="no config file"):
        load_server_config(str(tmp_path / "none.toml"), {}, {})


def test_every_setting_of_a_server_has_an_option_and_messages_name_it() -> None:
    serve = typer.main.get_command(app).commands["serve"]
    assert isinstance(serve, NamingOptions)
    options = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    fields = {*ServerConfig.__struct_fields__, *EngineConfig.__struct_fields__} - {"engine", "speculative"}
    assert [name for name in sorted(fields) if f"{serve.flags[name]} " not in options] == []
    assert serve.reworded("`max_model_len` must be at most 64\nhint: `block_size`") == (
        "`--max-model-len` must be at most 64\nhint: `--block-size`"
    )


def test_generate_passes_what_is_given_and_nothing_else() -> None:
    found = {}

    @with_options(SamplingParams, skip=UNPRINTED, fallback=True)
    def command(**values):
        found.update(values)

    given = ["--temperature", "0", "--stop", "a", "--stop", "b", "--ignore-eos", "--no-skip-special-tokens"]
    one = typer.Typer()
    one.command()(command)
    assert CliRunner().invoke(one, given).exit_code == 0
    assert found == {"temperature": 0.0, "stop": ("a", "b"), "ignore_eos": True, "skip_special_tokens": False}
