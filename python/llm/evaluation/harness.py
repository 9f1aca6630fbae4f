"""A model class for EleutherAI's lm-evaluation-harness, which runs its tasks through an engine of this package.

The harness finds models by its own registry only, so this module has to be imported first:
`python -m llm.evaluation.harness` is the command `lm_eval` with the model `llm-oxide`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.progress import MofNCompleteColumn

from llm.errors import ConfigError, MissingExtraError
from llm.evaluation.likelihood import Pair, begin_token, likelihoods
from llm.inference import Collector, EngineConfig, Prompt, Session, load_engine
from llm.progress import progress_bar
from llm.settings.merge import validated
from llm.settings.sampling import GREEDY, SamplingParams
from llm.tokenization import render_chat

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    message = f"the harness needs `lm-eval`: {error}\nhint: pip install 'llm-oxide[lm-eval]'"
    raise MissingExtraError(message) from error

MAX_ANSWER_TOKENS = 256
# Arguments of a generation that are no sampling values: `do_sample: false` comes with a temperature of 0.
_HANDLED = {"do_sample", "max_gen_toks", "until"}


@register_model("llm-oxide")
class OxideLM(TemplateLM):  # type: ignore[misc]
    """A checkpoint as a model of the harness.

    The engine forms its own batches, so `batch_size` and `max_batch_size` have no effect.

    Args:
        path: A checkpoint, run or .gguf file.
        dtype: `auto` (the checkpoint's own), `float32`, `bfloat16` or `float16`.
        device: `auto`, `cpu` or `cuda[:N]`.
        max_length: Longest context in tokens; by default the model's.
        max_gen_toks: Number of new tokens in answers of tasks that set none.
        batch_size: Ignored.
        max_batch_size: Ignored.
    """

    def __init__(
        self,
        path: str,
        dtype: str = "auto",
        device: str | None = None,
        *,
        max_length: int | None = None,
        max_gen_toks: int = MAX_ANSWER_TOKENS,
        batch_size: int | str | None = None,  # noqa: ARG002 - the harness passes it to every model
        max_batch_size: int | None = None,  # noqa: ARG002 - the same
    ) -> None:
        super().__init__()
        config = EngineConfig(max_model_len=max_length)
        self._session = Session(load_engine(path, dtype=dtype, device=device or "auto", config=config))
        self._name = path
        self.tokenizer = self._session.tokenizer
        self.max_gen_toks = int(max_gen_toks)

    @property
    def max_length(self) -> int:
        """Longest context and continuation together, in tokens."""
        return self._session.engine.max_model_len

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text."""
        return next(iter(self.tokenizer.eos_ids), None)

    @property
    def prefix_token_id(self) -> int | None:
        """The token before a text without context."""
        return next(iter(begin_token(self._session)), None)

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's cache of requests."""
        return self._name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the source of the chat template if the harness is to apply it."""
        return self.tokenizer.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns a conversation as text."""
        return render_chat(
            self.tokenizer,
            chat_history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Returns the token ids of a text; the text of a special token becomes that token."""
        add = add_special_tokens is not False
        return self._session.encode(string, add_special_tokens=add, allow_special=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Returns the log-likelihood of each continuation and whether it is the greedy one."""
        pairs = [Pair(context, continuation) for _, context, continuation in requests]
        # Equal contexts stand together, so that each is computed once.
        order = sorted(range(len(pairs)), key=lambda at: pairs[at].context)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        scored = likelihoods(self._session, (pairs[at] for at in order))
        for at, likelihood in zip(order, _shown(scored, len(pairs), disable_tqdm), strict=True):
            found[at] = (likelihood.logprob, likelihood.is_greedy)
            if requests[at][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[at][0], found[at])
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of whole texts, in windows that overlap by one token."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners = []
        for number, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, rolling):
                windows.append((None, context, continuation))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns an answer to each request, without the text that ended it."""
        prompts, stops = [], []
        eos = None if self.eot_token_id is None else self.tokenizer.decode([self.eot_token_id])
        for request in requests:
            context, given = request.args
            options = normalize_gen_kwargs(given, self.max_gen_toks)
            stops.append(handle_stop_sequences(options.get("until"), eos=eos))
            prompts.append(self._prompt(context, options, stops[-1]))
        collector = Collector(prompts)
        with progress_bar(MofNCompleteColumn(), wanted=None if not disable_tqdm else False) as bar:
            task = bar.add_task("generating", total=len(prompts))
            for numbered in self._session.run(prompts):
                collector.add([numbered])
                bar.advance(task, int(numbered[1].finish_reason is not None))
        answers = []
        for request, output, stop in zip(requests, collector.outputs(), stops, strict=True):
            answers.append(postprocess_generated_text(output.text, stop, None))
            self.cache_hook.add_partial("generate_until", request.args, answers[-1])
        return answers

    def _prompt(self, context: str, options: dict[str, Any], stop: list[str]) -> Prompt:
        max_tokens = int(options["max_gen_toks"])
        token_ids = self.tok_encode(context)[-max(1, self.max_length - max_tokens) :]
        sampling = GREEDY | {name: value for name, value in options.items() if name not in _HANDLED}
        unknown = sampling.keys() - set(SamplingParams.__struct_fields__)
        if unknown:
            raise ConfigError(f"unknown `generation_kwargs`: {', '.join(sorted(unknown))}")
        params = SamplingParams(
            **sampling,
            max_tokens=min(max_tokens, self.max_length - len(token_ids)),
            stop=tuple(text for text in stop if text),
        )
        return Prompt(token_ids=token_ids, params=validated(params))


def _shown(items: Iterator[Any], total: int, hidden: bool) -> Iterator[Any]:
    """Yields the items and shows how many of them are done."""
    with progress_bar(MofNCompleteColumn(), wanted=False if hidden else None) as bar:
        task = bar.add_task("scoring", total=total)
        for item in items:
            yield item
            bar.advance(task)


if __name__ == "__main__":
    cli_evaluate()
