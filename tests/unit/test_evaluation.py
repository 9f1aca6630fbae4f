"""Evaluation with a real small model: beside plain passes of that model, and as a command."""

import json
import math
import statistics
from pathlib import Path

import msgspec
import pytest
import torch
from typer.testing import CliRunner

from llm import LLM, SamplingParams, evaluate
from llm.checkpoint import load_model
from llm.cli.main import app
from llm.errors import ConfigError, DataError
from llm.evaluation.likelihood import Pair, encode_pair, likelihoods
from llm.inference import EngineConfig
from llm.models import ForwardContext, positions_of

QUESTIONS = [
    {"context": "ROMEO:\nBut soft, what", "choices": ["light", "window breaks", "a day"], "answer": 0},
    {"context": "To be, or not", "choices": ["to be", "to see or hear", "x"], "answer": 1},
    {"context": "JULIET:\nO Romeo,", "choices": ["Romeo", "where are you", "y"], "answer": 2},
    {"context": "My lord, the king", "choices": ["is dead", "lives", "zz"], "answer": 0},
    {"context": "Good night, good", "choices": ["night", "parting", "q"], "answer": 2},
]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> LLM:
    return LLM(tiny_checkpoint)


def write_lines(file: Path, rows: list[dict[str, object]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def logprobs_of(checkpoint: Path, ids: list[int]) -> list[float]:
    """Log-probability of each token after the first, by one plain pass."""
    with torch.inference_mode():
        tokens = torch.tensor(ids)
        logits = load_model(checkpoint)(tokens, positions_of((len(ids),)), ForwardContext.for_sequences((len(ids),)))
    found: list[float] = logits[:-1].log_softmax(-1).gather(1, tokens[1:, None]).squeeze(1).tolist()
    return found


@pytest.mark.parametrize("caching", [True, False])
def test_likelihoods_equal_a_plain_pass(tiny_checkpoint: Path, caching: bool) -> None:
    config = EngineConfig(block_size=4, max_batch_tokens=32, max_waiting_requests=6, enable_prefix_caching=caching)
    session = LLM(tiny_checkpoint, config=config).session
    contexts = [session.encode("Now is the winter of our discontent" + end) for end in ("", " made", " made", ", my")]
    pairs = [
        Pair(context, session.encode(text)) for context in contexts for text in (" glorious", " summer by this", "s")
    ]
    found = list(likelihoods(session, iter(pairs)))
    for pair, likelihood in zip(pairs, found, strict=True):
        wanted = logprobs_of(tiny_checkpoint, pair.context + pair.continuation)[len(pair.context) - 1 :]
        assert likelihood.logprob == pytest.approx(sum(wanted), abs=1e-3)
    stats = session.engine.stats()
    assert (stats["prefix_hit_tokens"] > sum(len(pair.context) for pair in pairs) // 2) is caching
    assert stats["blocks_free"] == stats["blocks_total"]


def test_a_continuation_is_greedy_if_the_model_would_generate_it(model: LLM) -> None:
    context = model.session.encode("To be")
    answer = list(model.generate([context], SamplingParams(temperature=0.0, max_tokens=5))[0].token_ids)
    other = [*answer[:-1], (answer[-1] + 1) % model.tokenizer.vocab_size]
    greedy, not_greedy = likelihoods(model.session, [Pair(context, answer), Pair(context, other)])
    assert (greedy.is_greedy, not_greedy.is_greedy) == (True, False)


def test_long_contexts_are_cut_on_the_left(tiny_checkpoint: Path, model: LLM) -> None:
    context, continuation = [5] * 300, [6, 7, 8]
    [found] = likelihoods(model.session, [Pair(context, continuation)])
    wanted = logprobs_of(tiny_checkpoint, [*context, *continuation][-128:])[-3:]
    assert found.logprob == pytest.approx(sum(wanted), abs=1e-3)


def test_pairs_have_the_tokens_of_the_whole_text(model: LLM) -> None:
    encode = model.session.encode
    pair = encode_pair(model.session, "To be, ", "or not")
    assert pair.context == encode("To be,")
    assert pair.context + pair.continuation == encode("To be, or not")
    alone = encode_pair(model.session, "", "or not")
    assert alone.continuation == encode("or not")
    assert len(alone.context) == 1


@pytest.mark.parametrize("stride", [None, 7, 64])
def test_perplexity_of_a_text_equals_a_loop_over_its_windows(
    tiny_checkpoint: Path, model: LLM, tmp_path: Path, corpus_text: str, stride: int | None
) -> None:
    text = corpus_text[:600] + "é🙂"
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    [result] = evaluate(tiny_checkpoint, file, stride=stride).results
    ids = model.tokenizer.encode(text)
    prefix = [model.tokenizer.eos_ids[0]] if model.tokenizer.bos_id is None else [model.tokenizer.bos_id]
    sequence, logprobs, step = [*prefix, *ids], [], stride or 127
    start, stop = 1, 128
    while start < len(sequence):
        low = max(0, stop - 128)
        logprobs += logprobs_of(tiny_checkpoint, sequence[low:stop])[start - low - 1 :]
        start, stop = stop, min(len(sequence), stop + step)
    assert len(logprobs) == len(ids)
    assert result.kind == "perplexity"
    assert result.metrics["num_tokens"].value == len(ids)
    assert result.metrics["num_bytes"].value == len(text.encode())
    assert result.metrics["perplexity"].value == pytest.approx(math.exp(-statistics.fmean(logprobs)), rel=1e-4)
    bits = -sum(logprobs) / math.log(2) / len(text.encode())
    assert result.metrics["bits_per_byte"].value == pytest.approx(bits, rel=1e-4)
    assert sum(window.num_tokens for window in result.samples) == len(ids)


@pytest.mark.parametrize("shots", [0, 2])
def test_multiple_choice_takes_the_likeliest_choice(
    tiny_checkpoint: Path, model: LLM, tmp_path: Path, shots: int
) -> None:
    file = write_lines(tmp_path / "questions.jsonl", QUESTIONS)
    [result] = evaluate(tiny_checkpoint, file, shots=shots).results
    solved = "".join(f"{one['context']} {one['choices'][one['answer']]}\n\n" for one in QUESTIONS[:shots])  # type: ignore[index]
    right, right_normalized = [], []
    for sample, question in zip(result.samples, QUESTIONS[shots:], strict=True):
        choices: list[str] = question["choices"]  # type: ignore[assignment]
        assert sample.context == solved + str(question["context"])
        scores = []
        for choice in choices:
            pair = encode_pair(model.session, sample.context, f" {choice}")
            ids = pair.context + pair.continuation
            scores.append(sum(logprobs_of(tiny_checkpoint, ids[-128:])[-len(pair.continuation) :]))
        assert sample.choice_logprobs == pytest.approx(scores, abs=1e-3)
        normalized = [score / len(choice) for score, choice in zip(scores, choices, strict=True)]
        right.append(scores.index(max(scores)) == question["answer"])
        right_normalized.append(normalized.index(max(normalized)) == question["answer"])
    number = len(QUESTIONS) - shots
    assert (result.kind, result.num_samples) == ("multiple_choice", number)
    for name, values in (("accuracy", right), ("accuracy_normalized", right_normalized)):
        metric = result.metrics[name]
        assert metric.value == statistics.fmean(values)
        assert metric.stderr == pytest.approx(statistics.stdev(map(float, values)) / math.sqrt(number))


def test_generated_answers_are_compared_with_all_right_ones(tiny_checkpoint: Path, model: LLM, tmp_path: Path) -> None:
    contexts = ["To be", "O Romeo", "My lord"]
    params = SamplingParams(temperature=0.0, max_tokens=6, stop=("\n",))
    texts = [output.text for output in model.generate(contexts, params)]
    rows: list[dict[str, object]] = [
        {"context": contexts[0], "answer": f" {texts[0].strip()} "},
        {"context": contexts[1], "answer": ["no", texts[1]]},
        {"context": contexts[2], "answer": "never"},
    ]
    file = write_lines(tmp_path / "answers.jsonl", rows)
    [result] = evaluate(tiny_checkpoint, file, max_answer_tokens=6).results
    assert [sample.text for sample in result.samples] == texts
    assert [sample.is_right for sample in result.samples] == [True, True, False]
    assert result.metrics["exact_match"].value == pytest.approx(2 / 3)
    assert result.kind == "generation"


def test_command_prints_metrics_and_writes_every_sample(tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "questions.jsonl", QUESTIONS)
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be", encoding="utf-8")
    out = tmp_path / "report.json"
    arguments = ["eval", str(tiny_checkpoint), str(file), str(text), "--shots", "1", "--limit", "3", "--out", str(out)]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    report = msgspec.json.decode(out.read_bytes())
    assert report["settings"]["shots"] == 1
    assert [one["num_samples"] for one in report["results"]] == [3, 1]
    assert report["results"][0]["samples"][0]["choices"] == QUESTIONS[1]["choices"]
    for name in ("accuracy", "accuracy_normalized", "perplexity", "bits_per_byte"):
        assert name in result.output


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        ('{"context": "x"}\n', {}, "line 1 of .* must be a JSON object with `context`, `answer`"),
        (
            '{"context": "x", "choices": ["a", "b"], "answer": 2}\n',
            {},
            "`answer` must be below the number of choices 2",
        ),
        ('{"context": "x", "choices": ["a"], "answer": 0}\n', {}, "length >= 2"),
        ('{"context": "x", "answer": "y"}\n\n{"context":\n', {}, "line 3 of"),
        ('{"context": "x", "answer": "y"}\n', {"shots": 1}, "must hold more than 1 samples"),
        ("", {}, "must hold more than 0 samples"),
    ],
)
def test_bad_samples_are_named(
    tiny_checkpoint: Path, tmp_path: Path, lines: str, settings: dict[str, int], message: str
) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(lines, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        evaluate(tiny_checkpoint, file, **settings)  # type: ignore[arg-type]


def test_a_report_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("To be")
    for out, message in (
        (tmp_path, f"`out` must be a file, got the directory {tmp_path}\nhint: name a file in it, such as "),
        (tmp_path / "text.txt" / "a.json", "`out` must lie in a directory, got .* in the file "),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate(tmp_path / "no-checkpoint", tmp_path / "text.txt", out=out)


def test_bad_files_and_settings_are_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no file"):
        evaluate(tiny_checkpoint, tmp_path / "missing.txt")
    file = tmp_path / "text.txt"
    file.write_bytes(b"ab\xff")
    with pytest.raises(DataError, match="must be UTF-8, but byte 2"):
        evaluate(tiny_checkpoint, file)
    file.write_text("")
    with pytest.raises(DataError, match=r"text\.txt: a text must hold at least 1 token, got 0"):
        evaluate(tiny_checkpoint, file)
    file.write_text("To be")
    with pytest.raises(ConfigError, match="`stride` must be below the context of 128 tokens, got 128"):
        evaluate(tiny_checkpoint, file, stride=128)
    with pytest.raises(ConfigError, match="did you mean `shots`"):
        evaluate(tiny_checkpoint, file, shot=1)
