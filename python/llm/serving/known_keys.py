"""The request keys of this field that no request type has as a field, and what happens to each.

A key that OpenAI, vLLM, SGLang, llama.cpp or Ollama document is never ignored in silence. `REFUSED` holds the keys that
would change the answer: any value that would do so is a 400 with the way out. `ACCEPTED` holds the keys that leave the
answer as it is. A key that a request type declares is acted on there, whatever these tables say.
"""

from collections.abc import Iterable

import msgspec


class Refused(msgspec.Struct, frozen=True):
    """What a client that sends a refused key learns.

    Attributes:
        hint: The way out; empty if there is none.
        neutral: The values that change nothing; they are accepted, and so is null.
    """

    hint: str
    neutral: tuple[object, ...] = ()


def _refused(names: str, hint: str = "", *neutral: object) -> Iterable[tuple[str, Refused]]:
    return ((name, Refused(hint, neutral)) for name in names.split())


_STRUCTURED = "send `response_format` or `structured_outputs`"
_LENGTH = "send `max_tokens`"
_MESSAGES = "send the conversation as `messages` to /v1/chat/completions"
_TEMPLATE = "send the template's variables as `chat_template_kwargs`"
_CHAT_ONLY = "only /v1/chat/completions has a template"
_TOOLS = "only /v1/chat/completions takes tools"
_REASONING = "`reasoning` always holds what the model thought before its answer"
_NO_MEDIA = "the model reads text only"
_NO_ADAPTERS = "serve the merged weights"
_SERVER_SIDE = "this belongs to the server's options, not to a request; see `llm serve --help`"

REFUSED: dict[str, Refused] = {
    name: refused
    for rows in (
        # The answer's length and number.
        _refused("n_predict num_predict max_length max_new_tokens max_output_tokens", _LENGTH),
        _refused("max_completion_tokens max_tokens_to_sample", _LENGTH),
        _refused("n_cmpl num_return_sequences", "send `n`", 1),
        _refused("best_of", "send it to /v1/completions, or `n` with `logprobs` to choose the best answer", 1),
        _refused("t_max_predict_ms", _LENGTH, 0),
        _refused("truncate_prompt_tokens truncate", "shorten the prompt", False),
        # Which token comes next.
        _refused("repeat_penalty", "send `repetition_penalty`", 1),
        _refused("repeat_last_n", "`repetition_penalty` looks at the whole prompt and answer", -1),
        _refused("penalize_newline penalize_nl", "", False),
        _refused("typ_p typical", "send `typical_p`", 1),
        _refused("tfs_z", "send `typical_p` or `min_p`", 1),
        _refused("top_a", "send `min_p`", 0),
        _refused("mirostat mirostat_mode", "send `typical_p` or `min_p`", 0),
        _refused("dry_multiplier no_repeat_ngram_size", "send `repetition_penalty` or `frequency_penalty`", 0),
        _refused("xtc_probability dynatemp_range min_keep", "send `temperature`, `top_p` or `min_p`", 0),
        _refused("top_n_sigma adaptive_target", "send `min_p`", -1, 0),
        _refused("samplers sampler_seq", "the order of filters is fixed: top_k, top_p, min_p, typical_p", []),
        _refused("use_beam_search", "send `n` for several answers", False),
        _refused("num_beams beam_width", "send `n` for several answers", 1),
        _refused("length_penalty", "it only ranks beams, and there is no beam search", 1),
        _refused("early_stopping", "it only ends a beam search, and there is none", False),
        _refused("do_sample", "send `temperature`: 0 takes the likeliest token each time", True),
        _refused("bad_words", "send `logit_bias` with -100 for the ids of single tokens", []),
        _refused("logit_bias_type", "the keys of `logit_bias` are token ids", "input_ids"),
        _refused("logits_processors", "", []),
        _refused("custom_logit_processor custom_params watermark watermarking vllm_xargs", "", False, {}),
        _refused("n_indent", "", 0),
        _refused("classifier_free_guidance guidance_scale negative_prompt", "", 1, ""),
        # Where the answer ends.
        _refused("stop_sequences stop_words", "send `stop`", []),
        _refused("stop_regex", "send `stop` with the texts, or `structured_outputs` with `regex`", []),
        _refused("no_stop_trim", "send `include_stop_str_in_output`", False),
        _refused("repetition_detection", "send `repetition_penalty` or `max_tokens`"),
        # The answer's form.
        _refused("guided_json json_schema", _STRUCTURED + " with `json`"),
        _refused("guided_regex regex", _STRUCTURED + " with `regex`"),
        _refused("guided_choice", _STRUCTURED + " with `choice`", []),
        _refused("guided_grammar grammar ebnf", _STRUCTURED + " with `grammar` in Lark", ""),
        _refused("structural_tag guided_decoding_backend guided_whitespace_pattern format", _STRUCTURED, ""),
        _refused("json_mode", 'send `response_format` with {"type": "json_object"}', False),
        _refused("grammar_lazy grammar_triggers preserved_tokens", _STRUCTURED, False, []),
        _refused("text", "send `response_format` and `verbosity`", {"format": {"type": "text"}}),
        _refused("chat_format chat_parser generation_prompt thinking_forced_open", _TEMPLATE, False, ""),
        _refused("modalities", _NO_MEDIA, ["text"]),
        _refused("audio images width height steps", _NO_MEDIA, []),
        # Tools and searches.
        _refused("tools", _TOOLS, []),
        _refused("tool_choice", _TOOLS, "none", "auto"),
        _refused("functions", "send `tools`", []),
        _refused("function_call", "send `tool_choice`", "none", "auto"),
        _refused("parse_tool_calls", "tool calls are parsed if `tools` are sent", True, False),
        _refused("max_tool_calls", "", 0),
        _refused("web_search_options plugins", "offer a search as one of `tools`", []),
        _refused("moderation", ""),
        # Reasoning.
        _refused("reasoning_effort verbosity", _CHAT_ONLY),
        _refused("think thinking reasoning", "send `reasoning_effort` or `chat_template_kwargs`"),
        _refused("enable_thinking", 'send `chat_template_kwargs` with {"enable_thinking": …}'),
        _refused("thinking_token_budget thinking_budget_tokens reasoning_budget", "send `reasoning_effort`", -1),
        _refused("include_reasoning separate_reasoning stream_reasoning", _REASONING, True),
        _refused("reasoning_format", _REASONING, "auto"),
        # The prompt.
        _refused("messages", _MESSAGES, []),
        _refused("prompt", "send `messages` here, or the prompt to /v1/completions", ""),
        _refused("input", "send `messages`, or the input to /v1/responses", []),
        _refused("inputs", "send `prompt` to /v1/completions", ""),
        _refused("input_ids prompt_token_ids", "send the ids as `prompt` to /v1/completions", []),
        _refused("prompt_embeds input_embeds", "send a text or token ids", []),
        _refused("instructions system", 'send a message with the role "system"', ""),
        _refused("suffix input_prefix input_suffix input_extra", "send the whole text as `prompt`", "", []),
        _refused("echo", "only /v1/completions repeats its prompt", False),
        _refused("raw", "send the prompt to /v1/completions, which uses no template", False),
        _refused("context", _MESSAGES, []),
        _refused("previous_response_id conversation", "send all messages, or call /v1/responses", ""),
        _refused("template chat_template", _TEMPLATE, ""),
        _refused("chat_template_kwargs documents", _CHAT_ONLY, {}, []),
        _refused("add_generation_prompt continue_final_message", _CHAT_ONLY, False),
        _refused("task", _TEMPLATE),
        _refused("media_io_kwargs mm_processor_kwargs images_config video_config", _NO_MEDIA, {}),
        _refused("max_dynamic_patch min_dynamic_patch use_audio_in_video return_mm_kwargs", _NO_MEDIA, True, False),
        # What the response holds.
        _refused("top_logprobs", "send `logprobs` as a number", 0),
        _refused("n_probs post_sampling_probs", "send `logprobs`", 0, False),
        _refused("logprob_token_ids", "send `logprobs`", []),
        _refused("return_tokens_as_token_ids return_token_offsets", "send `return_token_ids`", False),
        _refused("return_tokens return_prompt_token_ids", "send `return_token_ids`", False),
        _refused("return_input_ids_in_sglext return_output_ids_in_sglext", "send `return_token_ids`", False),
        _refused("return_prompt_text", "send the messages to /tokenize", False),
        _refused("return_hidden_states", "send the text to /v1/embeddings", False),
        _refused("return_routed_experts return_sampling_mask return_meta_info return_text_in_logprobs", "", False),
        _refused("return_flat_raw_output_top_logprobs return_flat_raw_top_logprobs_b64", "send `logprobs`", False),
        _refused("routed_experts_start_len routed_experts_prompt_start", "", 0),
        _refused("sampling_logprobs_mode", "log-probabilities are those before temperature and filters"),
        _refused("return_cached_tokens_details return_spec_tokens_details", "`usage` counts cached tokens", False),
        _refused("timings_per_token return_progress details", "/metrics has the times", False),
        _refused("response_fields include", "", []),
        _refused("store", "call /v1/responses, which stores responses", False),
        _refused("background", "send the request with `stream`", False),
        _refused("request_id", "send the header X-Request-ID"),
        # Isolation and placement.
        _refused("cache_salt extra_key", "start the server with --no-prefix-caching to keep clients apart", ""),
        _refused("kv_transfer_params ec_transfer_params session_params", "", {}),
        _refused("lora lora_path lora_request adapter_id", _NO_ADAPTERS, [], ""),
        _refused("num_ctx n_ctx", "start the server with --max-model-len"),
        _refused("truncation", "shorten the conversation", "disabled"),
        _refused("numa num_batch num_gpu main_gpu low_vram f16_kv use_mmap use_mlock num_thread", _SERVER_SIDE),
        _refused("logits_all vocab_only embedding_only", _SERVER_SIDE, False),
        # Objects whose keys belong elsewhere.
        _refused("options parameters extra_body sampling_params", "send its keys at the top level", {}),
    )
    for name, refused in rows
}

# A mapping whose own keys are judged as if they stood at the top level, so that the 400 names the right one.
NESTED = "options"

ACCEPTED = frozenset(
    (
        # Notes for the operator or the provider.
        *("custom_labels", "metadata", "rid", "safety_identifier", "session_id", "user"),
        # Where and how fast the request runs, and how its chunks are cut.
        *("backend_sampling", "data_parallel_rank", "id_slot", "keep_alive", "prediction", "service_tier"),
        *("sse_ping_interval", "stream_interval", "parallel_tool_calls"),
        *("speculative.n_max", "speculative.n_min", "speculative.p_min"),
        # The prefix cache, which changes no answer.
        *("cache_prompt", "n_cache_reuse", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        # Values that matter only together with a refused key, or once a context overflows, which is an error here.
        *("adaptive_decay", "dry_allowed_length", "dry_base", "dry_penalty_last_n", "dry_sequence_breakers"),
        *("dynatemp_exponent", "mirostat_eta", "mirostat_tau", "n_discard", "n_keep", "num_keep"),
        *("truncation_side", "xtc_threshold"),
        # Spaces that slow tokenizers of transformers add; ours never does.
        *("clean_up_tokenization_spaces", "spaces_between_special_tokens"),
    )
)

# The same for a message of a conversation.
REFUSED_IN_MESSAGE: dict[str, Refused] = {
    name: refused
    for rows in (
        _refused("prefix partial", "send `continue_final_message`", False),
        _refused("images", _NO_MEDIA, []),
        _refused("tools", "send `tools` beside `messages`", []),
    )
    for name, refused in rows
}

# Keys of messages that clients send back from earlier answers, or that only some servers act on.
ACCEPTED_IN_MESSAGE = frozenset(("annotations", "cache_control", "id", "phase", "reasoning_details", "thinking"))

# The same for `stream_options`.
REFUSED_IN_STREAM_OPTIONS: dict[str, Refused] = dict(
    _refused("continuous_usage_stats", "`include_usage` sends the usage once, at the end", False)
)
