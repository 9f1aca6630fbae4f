"""Settings from files, environment and arguments."""

import msgspec
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from llm.cli.options import size_in_bytes
from llm.errors import ConfigError
from llm.settings.merge import load_run_config, validated
from llm.settings.model import ModelConfig
from llm.settings.run import RunConfig, TrainingConfig
from llm.settings.sampling import SamplingParams


def test_sources_override_in_order(tmp_path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[training]\nepochs = 2\nbatch_size = 4\nmax_steps = 7\n")
    environ = {"LLM_TRAINING__EPOCHS": "3", "LLM_TRAINING__BATCH_SIZE": "6", "LLM_API_KEY": "not a setting"}
    config = load_run_config(file, ["training.batch_size=8"], environ)
    assert (config.training.epochs, config.training.batch_size, config.training.max_steps) == (3, 8, 7)


def test_the_process_environment_is_read(monkeypatch) -> None:
    monkeypatch.setenv("LLM_TRAINING__EPOCHS", "5")
    assert load_run_config().training.epochs == 5


def test_values_are_read_as_toml_or_text() -> None:
    overrides = ["data.paths=['a', 'b']", "tokenizer.path=my/dir", "optimizer.max_grad_norm=null", "training.seed=7"]
    config = load_run_config(overrides=overrides, environ={})
    assert config.data.paths == ("a", "b")
    assert config.tokenizer.path == "my/dir"
    assert config.optimizer.max_grad_norm is None
    assert config.training.seed == 7


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("LLM_X__Y", "unknown setting `x`; Valid: "),
        ("LLM_TRAINING__EPOCH", "unknown setting `training.epoch`; did you mean `epochs`?"),
        ("LLM_TRAINING__LR", "unknown setting `training.lr`; did you mean `optimizer.learning_rate`?"),
    ],
)
def test_a_variable_that_is_no_setting_is_named(name: str, way_out: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config(environ={name: "1"})
    assert str(caught.value).startswith(f"the variable `{name}` names no setting: {way_out}")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        (
            "training.learning_rate=1",
            ["unknown setting `training.learning_rate`; did you mean `optimizer.learning_rate`"],
        ),
        ("optimizer.lr=1", ["did you mean `optimizer.learning_rate`"]),
        ("training.max_grad_norm=1", ["did you mean `optimizer.max_grad_norm`"]),
        ("training.block_size=32", ["did you mean `data.context_length`"]),
        ("learning_rat=1", ["`section.field=value`", "hint: did you mean `optimizer.learning_rate=…`?"]),
        ("training.epoch=3", ["unknown setting `training.epoch`", "did you mean `epochs`"]),
        ("trainin.epochs=3", ["unknown setting `trainin`", "did you mean `training`"]),
        ("training.zzzz=3", ["unknown setting `training.zzzz`", "Valid: async_save, attention_backend,"]),
        ("training.epochs=0", ["`training.epochs` must be `int` >= 1", "got 0"]),
        ("training.epochs=many", ["`training.epochs` must be", "got 'many'"]),
        ("optimizer.beta1=1.5", ["`optimizer.beta1`", "got 1.5"]),
        (
            "training.precision=float4",
            ["`training.precision` must be one of auto, float32, bfloat16, float16, float8, got 'float4'"],
        ),
        (
            'data.sources=[{name="web", weight=5}]',
            ["`data.sources.0` must have the field `paths`, got {'name': 'web', 'weight': 5}"],
        ),
        ("training.task=sft", ["`training.task` must be one of lm, regression, got 'sft'"]),
        ("data.context_length=4096", ["`data.context_length` must be at most `model.max_position_embeddings` (256)"]),
        ("training.gradient_accumulation_steps=3", ["must be a multiple of", "(3), got 16"]),
        ("model.num_key_value_heads=3", ["must divide `model.num_attention_heads` (4), got 3"]),
        ("model.hidden_size=130", ["must be a multiple of", "got 130"]),
        ("vocab_size=3", ["must look like `section.field=value`", "'vocab_size=3'"]),
        ("training.epochs", ["must look like `section.field=value`"]),
    ],
)
def test_bad_settings_say_what_got_and_allowed(override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config(overrides=[override], environ={})
    for part in parts:
        assert part in str(caught.value)


def test_a_missing_or_broken_file_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no config file"):
        load_run_config(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[training\n")
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
        load_run_config(broken)


def test_validated_checks_what_constructors_do_not() -> None:
    with pytest.raises(ConfigError, match="`epochs` must be"):
        validated(TrainingConfig(epochs=0))
    with pytest.raises(ConfigError, match=r"`top_p` must be `float` <= 1.0, got 1.5"):
        validated(SamplingParams(top_p=1.5))
    assert validated(SamplingParams(top_p=0.5, stop=("a",))) == SamplingParams(top_p=0.5, stop=("a",))


@pytest.mark.long
@given(st.integers(1, 10**6), st.floats(1e-6, 1.0), st.text(max_size=20))
def test_round_trip_through_builtins(steps: int, rate: float, path: str) -> None:
    config = RunConfig()
    config = msgspec.structs.replace(config, training=TrainingConfig(max_steps=steps))
    config = msgspec.structs.replace(config, optimizer=msgspec.structs.replace(config.optimizer, learning_rate=rate))
    config = msgspec.structs.replace(config, tokenizer=msgspec.structs.replace(config.tokenizer, path=path))
    assert validated(config) == config


def test_every_setting_is_described() -> None:
    for section in msgspec.structs.fields(RunConfig):
        for field in msgspec.structs.fields(section.type):
            assert "description=" in str(field.type), f"{section.name}.{field.name}"


def test_a_head_may_be_wider_than_its_share() -> None:
    assert ModelConfig(hidden_size=100, num_attention_heads=3, num_key_value_heads=1, head_dim=64).head_width == 64


@pytest.mark.parametrize(
    ("text", "wanted"), [("2GiB", 2 * 2**30), ("500 MB", 500_000_000), ("1.5k", 1500), ("4096", 4096), ("1B", 1)]
)
def test_sizes_are_read_in_the_usual_words(text: str, wanted: int) -> None:
    assert size_in_bytes(text) == wanted


@pytest.mark.parametrize("text", ["", "GiB", "-1", "0", "2 apples"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="must be a size such as 2GiB"):
        size_in_bytes(text)


def test_common_spellings_of_values_are_taken() -> None:
    overrides = ["training.max_steps=1e2", "model.tie_word_embeddings=False", "training.precision=bf16"]
    config = load_run_config(overrides=overrides, environ={})
    assert (config.training.max_steps, config.model.tie_word_embeddings) == (100, False)
    assert config.training.precision == "bfloat16"


def test_overrides_may_be_values_instead_of_text() -> None:
    overrides = ["training.max_steps=5", ("training.max_steps", 7), ("data.paths", ["a'b"])]
    config = load_run_config(overrides=overrides, environ={})
    assert (config.training.max_steps, config.data.paths) == (7, ("a'b",))
