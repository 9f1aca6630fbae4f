"""Types of `/v1/embeddings`, `/v1/score` and `/v1/rerank`."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from llm.serving.protocol.chat import ChatMessage
from llm.serving.protocol.described import MODEL, SPECIAL_TOKENS, TEXTS_OR_IDS
from llm.settings.sampling import TokenId

MAX_INPUTS = 2048

# A list of texts or of lists of token ids; for the embeddings endpoint, also a list of token ids.
_Inputs = Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1, max_length=2**20)]
_Texts = str | Annotated[list[str], Meta(min_length=1, max_length=MAX_INPUTS)]


class EmbeddingUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Number of tokens in the inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The request body of `POST /v1/embeddings`: a text, a list of token ids, or a list of either."""

    model: Annotated[str, MODEL]
    input: Annotated[str | _Inputs, TEXTS_OR_IDS]
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        Meta(description="Form of the vectors; `base64` is that of little-endian float32."),
    ] = None
    dimensions: Annotated[int, Meta(ge=1, description="Number of leading components to keep; null: all.")] | None = None
    add_special_tokens: Annotated[bool | None, SPECIAL_TOKENS] = None


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """The vector of one input: numbers, or the base64 text of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `/v1/embeddings`."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


# A conversation, or a list of conversations.
_Conversations = Annotated[list[ChatMessage | list[ChatMessage]], Meta(min_length=1, max_length=MAX_INPUTS)]


class ScoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The request body of `POST /v1/score`: pairs of texts, or what a reward model judges.

    One text goes with each of several, or there are as many pairs as texts. A reward model takes `text_1` for what the
    user says and `text_2` for the answer.
    """

    model: Annotated[str, MODEL]
    text_1: Annotated[_Texts | None, Meta(description="A text for each of `text_2`, or as many texts.")] = None
    text_2: Annotated[_Texts | None, Meta(description="The other text of each pair.")] = None
    messages: Annotated[
        _Conversations | None,
        Meta(description="A conversation up to and with the answer, or a list of them, for a reward model."),
    ] = None
    input: Annotated[
        str | _Inputs | None,
        Meta(description="A text as the model reads it, or token ids, or a list, for a reward model."),
    ] = None


class PairScore(msgspec.Struct, frozen=True, kw_only=True):
    """The similarity of one pair of texts, or the reward of one answer."""

    index: int
    score: float
    object: Literal["score"] = "score"


class ScoreList(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `/v1/score`."""

    id: str
    created: int
    model: str
    data: list[PairScore]
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A document of a reranking."""

    text: str


class RerankRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The request body of `POST /v1/rerank`."""

    model: Annotated[str, MODEL]
    query: Annotated[str, Meta(description="The text that documents are compared with.")]
    documents: Annotated[
        list[str | Document], Meta(min_length=1, max_length=MAX_INPUTS, description="The documents to order.")
    ]
    top_n: Annotated[int, Meta(ge=0, description="Number of documents to return; null or 0: all.")] | None = None
    return_documents: Annotated[
        bool | None, Meta(description="Whether to return the text of each document; null: yes.")
    ] = None

    @property
    def texts(self) -> list[str]:
        """Returns the text of each document."""
        return [document if isinstance(document, str) else document.text for document in self.documents]


class RankedDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A document's place in the request, its similarity to the query, and its text unless the request declined it."""

    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `/v1/rerank`, with the most similar document first."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: EmbeddingUsage
