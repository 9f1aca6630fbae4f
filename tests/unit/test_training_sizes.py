"""The rule from a number of parameters to shape, rate and batch."""

import pytest

from llm.errors import ConfigError
from llm.models.costs import num_parameters
from llm.settings.model import ModelConfig
from llm.training.sizes import learning_rate_of, parameters_of_size, passes_of_batch, shape_of_size, tokens_per_step


@pytest.mark.parametrize(
    ("batch_size", "wanted", "passes"),
    [(64, 1, 1), (64, 4, 4), (96, 5, 6), (65, 2, 5), (1000, 16, 20), (127, 2, 1), (127, 3, 127), (3, 8, 3), (1, 1, 1)],
)
def test_a_batch_is_taken_in_equal_passes_of_about_the_wanted_size(batch_size: int, wanted: int, passes: int) -> None:
    assert passes_of_batch(batch_size, wanted) == passes
    assert batch_size % passes == 0


@pytest.mark.parametrize(
    ("size", "vocab_size", "shape"),
    [
        ("1M", 1024, None),
        ("15M", 4096, None),
        ("124M", 50_304, (768, 12)),
        ("1.1B", 32_768, None),
        ("7B", 32_768, None),
    ],
)
def test_a_size_gives_a_model_of_about_so_many_parameters(
    size: str, vocab_size: int, shape: tuple[int, int] | None
) -> None:
    wanted = parameters_of_size(size)
    model = shape_of_size(wanted, vocab_size, ModelConfig(vocab_size=vocab_size))
    assert num_parameters(model) == pytest.approx(wanted, rel=0.1)
    assert 32 <= model.hidden_size / model.num_hidden_layers <= 128
    assert model.hidden_size % model.num_attention_heads == 0
    if shape:
        assert (model.hidden_size, model.num_hidden_layers) == shape


@pytest.mark.parametrize("size", ["", "M", "15 apples", "-3M", "9k", "1e6B", "2000B"])
def test_a_size_that_is_no_number_of_parameters_is_refused(size: str) -> None:
    with pytest.raises(ConfigError, match=r"`training\.size` must be 10k to 1000B parameters, such as 15M, got"):
        parameters_of_size(size)


def test_rate_and_batch_follow_width_and_tokens() -> None:
    assert [learning_rate_of("muon", width) for width in (128, 256, 512, 1024)] == [0.006, 0.004, 0.002, 0.001]
    assert learning_rate_of("adamw", 768) == pytest.approx(6.7e-4)
    assert [tokens_per_step(total) for total in (1, 2e6, 3e10, 1e15)] == [512, 4096, 524_288, 4_194_304]
