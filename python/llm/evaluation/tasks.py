"""Multiple choice and generated answers."""

import contextlib
from collections.abc import Callable, Sequence

import msgspec

from llm.evaluation.likelihood import encode_pair, likelihoods
from llm.evaluation.report import Metric
from llm.evaluation.samples import ChoiceSample, GenerationSample, joined, with_shots
from llm.inference import Collector, Prompt, Session
from llm.settings.evaluation import EvaluationConfig
from llm.settings.sampling import SamplingParams

Advance = Callable[[int], None]


class ChosenSample(msgspec.Struct, frozen=True, kw_only=True):
    """A sample of multiple choice with the model's choices.

    Attributes:
        context: Text before the choice, solved samples included.
        choices: The choices.
        answer: Index of the right choice.
        choice_logprobs: Log-probability of each choice.
        chosen: Index of the likeliest choice.
        chosen_normalized: Index of the choice with the highest log-probability per character.
    """

    context: str
    choices: list[str]
    answer: int
    choice_logprobs: list[float]
    chosen: int
    chosen_normalized: int


class AnsweredSample(msgspec.Struct, frozen=True, kw_only=True):
    """A sample with the model's answer.

    Attributes:
        context: Text that was continued, solved samples included.
        answers: The right answers.
        text: The model's answer.
        finish_reason: `stop` or `length`.
        is_right: Whether the answer without surrounding space equals one of the right ones.
    """

    context: str
    answers: list[str]
    text: str
    finish_reason: str
    is_right: bool


def multiple_choice(
    session: Session, samples: Sequence[ChoiceSample], config: EvaluationConfig, advance: Advance
) -> tuple[dict[str, Metric], list[ChosenSample]]:
    """Returns the share of samples whose likeliest choice is right: as it is, and normalised by length in characters.

    Source: Brown et al. 2020, "Language Models are Few-Shot Learners", section 2.4.
    """
    contexts = with_shots(samples, config)
    asked = samples[config.shots :]
    pairs = (
        encode_pair(session, context, joined(config.separator, choice))
        for context, sample in zip(contexts, asked, strict=True)
        for choice in sample.choices
    )
    scored = likelihoods(session, pairs)
    found = []
    for context, sample in zip(contexts, asked, strict=True):
        logprobs = [next(scored).logprob for _ in sample.choices]
        per_character = [value / max(1, len(choice)) for value, choice in zip(logprobs, sample.choices, strict=True)]
        found.append(
            ChosenSample(
                context=context,
                choices=sample.choices,
                answer=sample.answer,
                choice_logprobs=logprobs,
                chosen=logprobs.index(max(logprobs)),
                chosen_normalized=per_character.index(max(per_character)),
            )
        )
        advance(1)
    metrics = {
        "accuracy": Metric.mean([one.chosen == one.answer for one in found]),
        "accuracy_normalized": Metric.mean([one.chosen_normalized == one.answer for one in found]),
    }
    return metrics, found


def generation(
    session: Session, samples: Sequence[GenerationSample], config: EvaluationConfig, advance: Advance
) -> tuple[dict[str, Metric], list[AnsweredSample]]:
    """Returns the share of samples to which the model's greedy answer equals a right one, space around it aside."""
    contexts = with_shots(samples, config)
    params = SamplingParams(temperature=0.0, max_tokens=config.max_answer_tokens, stop=config.until)
    room = max(1, session.engine.max_model_len - config.max_answer_tokens)
    prompts = [Prompt(token_ids=session.encode(context)[-room:], params=params) for context in contexts]
    collector = Collector(prompts)
    with contextlib.closing(session.run(prompts)) as deltas:
        for numbered in deltas:
            collector.add([numbered])
            advance(int(numbered[1].finish_reason is not None))
    found = []
    for context, sample, output in zip(contexts, samples[config.shots :], collector.outputs(), strict=True):
        is_right = output.text.strip() in [answer.strip() for answer in sample.answers]
        found.append(
            AnsweredSample(
                context=context,
                answers=sample.answers,
                text=output.text,
                finish_reason=output.finish_reason,
                is_right=is_right,
            )
        )
    return {"exact_match": Metric.mean([one.is_right for one in found])}, found
