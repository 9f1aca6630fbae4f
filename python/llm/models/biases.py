"""Models without biases, in the layout of a family that has them everywhere."""

import msgspec
import torch

from llm.models.decoder import DecoderModel
from llm.models.families import family_of
from llm.models.hf import empty_model

_WITHOUT_BIAS = {"layer_norm_no_bias": "layer_norm"}


def with_biases(model: DecoderModel) -> DecoderModel:
    """Returns the model itself, or one with biases of zero if only that is what a family lacks to hold it.

    The result computes the same: GPT-2's layout, which needs biases in every layer, thus holds nanoGPT's models, which
    have none. Weights are shared.
    """
    if family_of(model.config).model_type != "llm_oxide":
        return model
    config = msgspec.structs.replace(
        model.config,
        norm=_WITHOUT_BIAS.get(model.config.norm, model.config.norm),
        attention_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
        family=None,
    )
    if family_of(config).model_type == "llm_oxide":
        return model
    filled = empty_model(config)
    state, dtype = model.state_dict(), model.embed_tokens.weight.dtype
    for name, empty in filled.state_dict().items():
        if name not in state:
            state[name] = torch.zeros(empty.shape, dtype=dtype, device=model.embed_tokens.weight.device)
    filled.load_state_dict(state, assign=True)
    if config.tie_word_embeddings:
        filled.lm_head.weight = filled.embed_tokens.weight
    return filled.train(model.training)
