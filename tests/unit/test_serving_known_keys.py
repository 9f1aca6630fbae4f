"""Every key that a server of this field documents is acted on, accepted, or refused with its name."""

import logging

import msgspec
import pytest

from llm.serving.errors import APIError
from llm.serving.known_keys import ACCEPTED, REFUSED, REFUSED_IN_MESSAGE, REFUSED_IN_STREAM_OPTIONS
from llm.serving.parsing import UnknownKeys, parse_request
from llm.serving.protocol.chat import ChatCompletionRequest
from llm.serving.protocol.completions import CompletionRequest

ENDPOINTS = {
    ChatCompletionRequest: {"model": "m", "messages": [{"role": "user", "content": "Hi"}]},
    CompletionRequest: {"model": "m", "prompt": "Hi"},
}
FIELDS = {kind: set(kind.__struct_encode_fields__) for kind in ENDPOINTS}

# The request fields of each server, as its sources declare them.
DOCUMENTED = {
    "openai": """messages model audio frequency_penalty function_call functions logit_bias logprobs
        max_completion_tokens max_tokens metadata modalities moderation n parallel_tool_calls prediction
        presence_penalty prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort response_format
        safety_identifier seed service_tier stop store stream_options temperature tool_choice tools top_logprobs top_p
        user verbosity web_search_options stream prompt best_of echo suffix""",
    "vllm": """thinking_token_budget include_reasoning use_beam_search top_k min_p repetition_penalty watermarking
        length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens skip_special_tokens
        spaces_between_special_tokens truncate_prompt_tokens truncation_side prompt_logprobs logprob_token_ids
        allowed_token_ids bad_words echo add_generation_prompt continue_final_message add_special_tokens documents
        chat_template chat_template_kwargs media_io_kwargs mm_processor_kwargs structured_outputs priority request_id
        session_id return_tokens_as_token_ids return_token_ids routed_experts_prompt_start return_token_offsets
        return_prompt_text return_mm_kwargs cache_salt kv_transfer_params ec_transfer_params vllm_xargs
        repetition_detection stream_interval prompt_embeds guided_json guided_regex guided_choice guided_grammar
        guided_decoding_backend guided_whitespace_pattern structural_tag logits_processors""",
    "sglang": """return_hidden_states return_routed_experts routed_experts_start_len return_cached_tokens_details
        return_spec_tokens_details return_prompt_token_ids return_token_ids return_meta_info
        return_input_ids_in_sglext return_output_ids_in_sglext return_sampling_mask sampling_logprobs_mode
        return_flat_raw_output_top_logprobs return_flat_raw_top_logprobs_b64 thinking task regex ebnf json_schema
        stop_regex no_stop_trim lora_path session_id session_params separate_reasoning stream_reasoning
        max_dynamic_patch min_dynamic_patch use_audio_in_video images_config video_config custom_logit_processor
        custom_params watermark input_ids rid extra_key cache_salt data_parallel_rank custom_labels""",
    "llama.cpp": """n_predict n_indent n_keep n_discard n_cmpl n_cache_reuse n_probs min_keep t_max_predict_ms id_slot
        cache_prompt return_tokens samplers timings_per_token return_progress sse_ping_interval post_sampling_probs
        response_fields lora dynatemp_range dynatemp_exponent typical_p repeat_penalty repeat_last_n dry_multiplier
        dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers xtc_probability xtc_threshold mirostat
        mirostat_tau mirostat_eta grammar json_schema top_n_sigma adaptive_target adaptive_decay backend_sampling
        speculative.n_min speculative.n_max speculative.p_min grammar_lazy grammar_triggers preserved_tokens
        chat_format chat_parser generation_prompt parse_tool_calls reasoning_format input_prefix input_suffix
        input_extra mirostat_mode logit_bias_type""",
    "ollama": """options format keep_alive suffix system template context raw images think width height steps numa
        num_ctx num_batch num_gpu main_gpu low_vram f16_kv logits_all vocab_only use_mmap use_mlock embedding_only
        num_thread num_keep num_predict tfs_z typical_p repeat_last_n repeat_penalty mirostat mirostat_tau mirostat_eta
        penalize_newline""",
}


def parse(raw, request_type, *, strict=False):
    return parse_request(msgspec.json.encode(raw), request_type, UnknownKeys(strict=strict))


def refusal(raw, request_type=ChatCompletionRequest, *, strict=False):
    with pytest.raises(APIError) as caught:
        parse(raw, request_type, strict=strict)
    assert caught.value.status == 400
    return caught.value.body


@pytest.mark.parametrize("server", DOCUMENTED)
@pytest.mark.parametrize("request_type", ENDPOINTS)
def test_no_documented_key_falls_through(server, request_type):
    known = REFUSED.keys() | ACCEPTED | FIELDS[request_type]
    assert set(DOCUMENTED[server].split()) - known == set()


def test_a_key_is_refused_or_accepted_never_both_and_a_field_of_all_endpoints_is_neither():
    assert REFUSED.keys() & ACCEPTED == set()
    assert (REFUSED.keys() | ACCEPTED) & set.intersection(*FIELDS.values()) == set()


@pytest.mark.parametrize(
    ("request_type", "name"), [(kind, name) for kind in ENDPOINTS for name in sorted(REFUSED.keys() - FIELDS[kind])]
)
def test_refused_key_is_named_with_its_way_out_and_its_neutral_values_pass(request_type, name):
    base = ENDPOINTS[request_type]
    body = refusal(base | {name: "no such value"}, request_type)
    assert (body.param, body.code) == (name, "unsupported_parameter")
    assert body.message.startswith(f'`{name}` is not supported with this value: got "no such value", allowed: null')
    assert body.message.endswith(REFUSED[name].hint)
    for value in (None, *REFUSED[name].neutral):
        assert parse(base | {name: value}, request_type, strict=True) == parse(base, request_type)


@pytest.mark.parametrize("request_type", ENDPOINTS)
def test_accepted_keys_take_any_value_without_a_word(request_type, caplog):
    base = ENDPOINTS[request_type]
    with caplog.at_level(logging.DEBUG):
        for name in ACCEPTED.difference(request_type.__struct_fields__):
            assert parse(base | {name: "anything"}, request_type, strict=True) == parse(base, request_type)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("raw", "param", "hint"),
    [
        ({"n_predict": 5}, "n_predict", "hint: send `max_tokens`"),
        ({"guided_choice": ["a"]}, "guided_choice", "with `choice`"),
        ({"repeat_penalty": 1.1}, "repeat_penalty", "hint: send `repetition_penalty`"),
        ({"best_of": 3}, "best_of", "hint: send it to /v1/completions, or `n`"),
        ({"options": {"num_ctx": 4096}}, "options.num_ctx", "hint: start the server with --max-model-len"),
        ({"options": {"seed": 1}}, "options.seed", "hint: send `seed` at the top level"),
        ({"extra_body": {"top_k": 5}}, "extra_body", "hint: send its keys at the top level"),
        ({"dry_multiplier": 0.8}, "dry_multiplier", "got 0.8, allowed: null, 0"),
    ],
)
def test_way_out_of_a_refused_key(raw, param, hint):
    body = refusal(ENDPOINTS[ChatCompletionRequest] | raw)
    assert body.param == param
    assert hint in body.message


@pytest.mark.parametrize("value", [1, 1.0])
def test_neutral_number_passes_as_either_number_type_but_not_as_a_boolean(value):
    base = ENDPOINTS[ChatCompletionRequest]
    assert parse(base | {"repeat_penalty": value}, ChatCompletionRequest) == parse(base, ChatCompletionRequest)
    assert refusal(base | {"repeat_penalty": True}).param == "repeat_penalty"


@pytest.mark.parametrize("name", REFUSED_IN_MESSAGE)
def test_refused_key_of_a_message_is_named(name):
    message = {"role": "assistant", "content": "x", name: "value"}
    body = refusal({"model": "m", "messages": [message]})
    assert body.param == f"messages[0].{name}"
    assert body.message.endswith(REFUSED_IN_MESSAGE[name].hint)


@pytest.mark.parametrize("name", REFUSED_IN_STREAM_OPTIONS)
def test_refused_key_of_stream_options_is_named(name):
    base = ENDPOINTS[ChatCompletionRequest] | {"stream": True}
    assert refusal(base | {"stream_options": {name: True}}).param == f"stream_options.{name}"
    assert parse(base | {"stream_options": {name: False}}, ChatCompletionRequest).stream


def test_strict_server_refuses_an_unknown_key_and_names_the_nearest():
    base = ENDPOINTS[ChatCompletionRequest]
    body = refusal(base | {"max_token": 5}, strict=True)
    assert (body.param, body.code) == ("max_token", "unknown_parameter")
    assert body.message == "`max_token` is not a parameter of this endpoint\nhint: did you mean `max_tokens`?"
    strange = {"role": "user", "content": "Hi", "nam": "Ann"}
    body = refusal(base | {"messages": [strange]}, strict=True)
    assert (body.param, body.message.partition("hint: ")[2]) == ("messages[].nam", "did you mean `messages[].name`?")
    echoed = {"role": "assistant", "content": "Hi", "annotations": [], "refusal": None}
    assert parse(base | {"messages": [echoed]}, ChatCompletionRequest, strict=True).messages[0].text == "Hi"
    assert "leave it out" in refusal(base | {"qqq": 5}, strict=True).message
    assert parse(base | {"max_token": 5}, ChatCompletionRequest) == parse(base, ChatCompletionRequest)
