"""Rows to fine-tune on: their formats, what of them is learnt, and what is refused."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.data import IGNORED_LABEL, ChatDataModule
from llm.data.readers import Row, read_rows
from llm.data.rows import chat_row, format_of
from llm.errors import DataError
from llm.settings.run import DataConfig, RunConfig
from llm.settings.sources import SourceConfig
from llm.tokenization import BPETokenizer, ChatTemplate, encode_chat, use_chat_template
from llm.training.rows import check_served, mend, row_encoder
from tests.unit.chat_rows import dialogue, turn, write_rows
from tests.unit.chat_samples import SPECIAL_TOKENS
from tests.unit.tokenization_samples import TRAINING_TEXT

ASKED = [turn("user", "Who?"), turn("assistant", "Me.")]


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    made = BPETokenizer.train_from_iterator([TRAINING_TEXT], vocab_size=400, special_tokens=SPECIAL_TOKENS)
    use_chat_template(made, "chatml")
    return made


def read(values: dict[str, Any], row_format: str = "auto") -> Any:
    return chat_row(Row("a.jsonl, line 1", values), row_format)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("messages", {"messages": ASKED}),
        ("messages", {"messages": [turn("user", [{"type": "text", "text": "Who?"}]), turn("assistant", "Me.")]}),
        ("conversations", {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]}),
        ("conversations", {"conversations": ASKED}),
        ("prompt", {"prompt": "Who?", "completion": "Me."}),
        ("prompt", {"prompt": ASKED[:1], "completion": ASKED[1:]}),
        ("instruction", {"instruction": "Who?", "input": "", "output": "Me."}),
    ],
)
def test_every_format_reads_as_the_same_messages(name: str, values: dict[str, Any]) -> None:
    assert format_of(values) == name
    assert read(values).messages == ASKED


def test_further_fields_reach_the_conversation() -> None:
    tool = {"name": "add", "parameters": {"type": "object"}}
    row = read({"messages": ASKED, "tools": '[{"type": "function", "function": {"name": "add"}}]'})
    assert row.options == {"tools": [{"type": "function", "function": {"name": "add"}}]}
    assert read({"messages": ASKED, "tools": [tool]}).options["tools"] == [{"type": "function", "function": tool}]
    alpaca = read(
        {"instruction": "Add.", "input": "1 and 2", "output": "3", "system": "Be brief.", "history": [["a", "b"]]}
    )
    assert [one["content"] for one in alpaca.messages] == ["Be brief.", "a", "b", "Add.\n\n1 and 2", "3"]
    assert read({"messages": ASKED, "chat_template_kwargs": {"enable_thinking": False}}).options == {
        "variables": {"enable_thinking": False}
    }


def test_calls_become_what_the_chat_path_of_serving_passes_on() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        turn("developer", "Be brief."),
        turn("user", "1?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        turn("assistant", "1.", reasoning_content="easy"),
    ]
    found = read({"messages": messages}).messages
    assert found[0]["role"] == "system"
    assert found[2]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert found[2]["content"] == ""
    assert found[3]["name"] == "add"
    assert found[4]["reasoning_content"] == "easy"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"text": "Once upon a time"}, "must have the fields `messages`, or `conversations`, .*those there are `text`"),
        ({"messages": []}, "`messages` must be a list of at least one message"),
        ({"messages": "hello"}, "`messages` must be a list of messages, got text"),
        ({"messages": [turn("bot", "Hi")]}, "message 1: `role` must be one of `system`.*got 'bot'"),
        ({"messages": [turn("user", "Hi")]}, "must have a turn of the assistant.*its roles are user"),
        ({"messages": [turn("user", 3), ASKED[1]]}, "message 1: `content` must be text or a list of parts"),
        ({"messages": [{"role": "user"}, ASKED[1]]}, "message 1 of role `user` must have `content`, got none"),
        ({"messages": ["Hi"]}, "message 1 must be an object"),
        ({"messages": ASKED, "chat_template_kwargs": [1]}, "`chat_template_kwargs` must be an object"),
        ({"conversations": [{"from": ["gpt"], "value": "Hi"}]}, "turn 1: `from` must be one of"),
        ({"conversations": [{"from": "bot", "value": "Hi"}]}, "turn 1: `from` must be one of `human`.*got 'bot'"),
        ({"messages": ASKED, "tools": "nope"}, "`tools` must be a list or its JSON text"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}, "JSON"),
    ],
)
def test_a_wrong_row_is_one_error_that_names_it(values: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.jsonl, line 1: .*{words}"):
        read(values)


def test_a_format_that_is_named_is_not_guessed() -> None:
    both = {"messages": ASKED, "prompt": "Who are you?", "completion": "You."}
    assert read(both, "prompt").messages[0]["content"] == "Who are you?"
    with pytest.raises(DataError, match="must have the fields `instruction` and `output`/`response`; those there"):
        read(both, "instruction")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_rows_of_every_kind_of_file_are_the_same(tmp_path: Path, suffix: str) -> None:
    rows = [dialogue(number) for number in range(5)]
    plain = write_rows(tmp_path / "plain.jsonl", rows)
    file = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), file)
    elif suffix.endswith("zst"):
        file.write_bytes(pytest.importorskip("zstandard").ZstdCompressor().compress(plain.read_bytes()))
    else:
        file.write_bytes(
            gzip.compress(plain.read_bytes()) if suffix.endswith("gz") else b"\xef\xbb\xbf" + plain.read_bytes()
        )
    assert [row.values for row in read_rows(file)] == rows


def test_lines_that_are_no_objects_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    for line, words in (("{", "got '{'"), ("[1]", r"got '\[1\]'")):
        file.write_text(f'{{"a": 1}}\n\n{line}\n')
        with pytest.raises(DataError, match=rf"a\.jsonl, line 3: each line must be a JSON object, {words}"):
            list(read_rows(file))
    with pytest.raises(DataError, match=r"rows are read from \.jsonl and \.parquet, got a file of text"):
        list(read_rows(tmp_path / "a.txt"))


def learnt(tokenizer: BPETokenizer, values: dict[str, Any], loss_on: str = "assistant") -> str:
    encoded = row_encoder(tokenizer, loss_on).encode(read(values), "here")
    return tokenizer.decode(encoded.ids[encoded.is_learnt])


TWO_TURNS = {"messages": [*ASKED, turn("user", "And?"), turn("assistant", "You.")]}


def test_only_the_turns_that_are_asked_for_are_learnt(tokenizer: BPETokenizer) -> None:
    assert learnt(tokenizer, TWO_TURNS) == "Me.<|im_end|>You.<|im_end|>"
    assert learnt(tokenizer, TWO_TURNS, "last") == "You.<|im_end|>"
    whole = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>\n"
    assert learnt(tokenizer, {"messages": ASKED}, "all") == whole


def test_without_a_template_the_completion_and_the_end_of_text_are_learnt() -> None:
    plain = BPETokenizer.train_from_iterator([TRAINING_TEXT], vocab_size=400, special_tokens=["<|endoftext|>"])
    values = {"prompt": "Who? ", "completion": "Me."}
    assert learnt(plain, values) == "Me.<|endoftext|>"
    assert learnt(plain, values, "all") == "Who? Me.<|endoftext|>"
    with pytest.raises(
        DataError, match=r"here: a conversation needs a chat template, .*\nhint: .*--chat-template chatml"
    ):
        learnt(plain, {"messages": ASKED})


def test_a_row_of_which_nothing_is_learnt_is_an_error(tokenizer: BPETokenizer) -> None:
    silent = BPETokenizer.train_from_iterator([TRAINING_TEXT], vocab_size=400, special_tokens=SPECIAL_TOKENS)
    use_chat_template(
        silent, ChatTemplate("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}")
    )
    with pytest.raises(DataError, match=r"^here: no token of the row is learnt"):
        learnt(silent, {"messages": ASKED})


def data_of(
    tokenizer: BPETokenizer, directory: Path, file: Path, context_length: int = 64, **settings: Any
) -> ChatDataModule:
    config = DataConfig(kind="chat", paths=(str(file),), **{"packing": True, "validation_fraction": 0.0} | settings)
    ChatDataModule.prepare(directory, config, row_encoder(tokenizer, config.loss_on))
    return ChatDataModule(directory, context_length, config)


def test_samples_hold_every_row_once_with_its_mask(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    rows = [dialogue(number) for number in range(40)]
    dataset = data_of(tokenizer, tmp_path, write_rows(tmp_path / "a.jsonl", rows), 128).train_dataset()
    batch = dataset.batch(np.arange(len(dataset)))
    assert max(batch.lengths) <= 128
    assert len(dataset) == 20
    found, start = [], 0
    for length in batch.lengths:
        ids, labels = batch.token_ids[start : start + length], batch.labels[start : start + length]
        found.append((ids.tolist(), tokenizer.decode(labels[labels != IGNORED_LABEL].tolist())))
        start += length
    wanted = [
        (
            encode_chat(tokenizer, row["messages"], add_generation_prompt=False)[:-1],
            row["messages"][1]["content"] + "<|im_end|>",
        )
        for row in rows
    ]
    assert sorted(found) == sorted(wanted)


def test_sources_and_selections_pass_masks_on(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    names = [write_rows(tmp_path / f"{name}.jsonl", [dialogue(at), dialogue(at + 1)]) for at, name in enumerate("ab")]
    sources = tuple(SourceConfig(paths=(str(file),), weight=2.0) for file in names)
    config = DataConfig(kind="chat", sources=sources, validation_fraction=0.0)
    ChatDataModule.prepare(tmp_path / "data", config, row_encoder(tokenizer, "assistant"))
    mixture = ChatDataModule(tmp_path / "data", 64, config).train_dataset()
    assert (mixture.sizes, mixture.source_names, mixture.weights) == ((2, 2), ("a", "b"), (2.0, 2.0))
    batch = mixture.batch(np.array([3, 0]))
    labels = batch.labels[batch.labels != IGNORED_LABEL].tolist()
    assert tokenizer.decode(labels) == "Box 2 is blue.<|im_end|>Box 0 is red.<|im_end|>"
    one = data_of(tokenizer, tmp_path / "one", names[0], packing=False, num_samples=1).train_dataset()
    labels = one.batch(np.array([0])).labels
    assert tokenizer.decode(labels[labels != IGNORED_LABEL].tolist()) == "Box 0 is red.<|im_end|>"


def test_long_rows_are_an_error_dropped_or_cut(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    long = {"messages": [turn("user", "Who?"), turn("assistant", "Me, " * 60)]}
    file = write_rows(tmp_path / "a.jsonl", [dialogue(0), long, dialogue(1)])
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: the row has \d+ tokens.*1 of 3 rows are too long\nhint: "):
        data_of(tokenizer, tmp_path / "error", file).train_dataset()
    dropped = data_of(tokenizer, tmp_path / "drop", file, too_long="drop", packing=False)
    assert len(dropped.train_dataset()) == 2
    assert dropped.notices()[1] == "chats: 1 of 3 rows are longer than a sample (64 tokens) and are left out"
    cut = data_of(tokenizer, tmp_path / "cut", file, too_long="cut", packing=False).train_dataset()
    assert max(cut.batch(np.arange(3)).lengths) == 64
    late = {"messages": [turn("user", "Who? " * 60), turn("assistant", "Me.")]}
    with pytest.raises(DataError, match=r"b\.jsonl, line 1: nothing is left to learn"):
        data_of(tokenizer, tmp_path / "late", write_rows(tmp_path / "b.jsonl", [late]), too_long="cut").train_dataset()


def test_the_last_rows_or_files_of_their_own_are_held_out(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [dialogue(number) for number in range(20)])
    own = write_rows(tmp_path / "own.jsonl", [dialogue(3)])
    data = data_of(tokenizer, tmp_path / "split", file, packing=False, validation_fraction=0.1)
    assert [len(data.train_dataset()), len(data.validation_dataset())] == [18, 2]
    assert (
        tokenizer.decode(data.prompt_ids())
        == "<|im_start|>user\nWhat colour is box 6?<|im_end|>\n<|im_start|>assistant\n"
    )
    data = data_of(tokenizer, tmp_path / "own", file, packing=False, validation_paths=(str(own),))
    assert [len(data.train_dataset()), len(data.validation_dataset())] == [20, 1]


def test_a_damaged_shard_is_encoded_anew_and_a_wrong_row_leaves_nothing(
    tokenizer: BPETokenizer, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "a.jsonl", [dialogue(0), dialogue(1)])
    data = data_of(tokenizer, tmp_path / "data", file)
    shard = next((tmp_path / "data").glob("*-learnt.bin"))
    good = shard.read_bytes()
    shard.write_bytes(bytes(len(good)))
    assert "encoded anew" in mend(RunConfig(data=data.config), tokenizer, data.directory)[0]
    assert shard.read_bytes() == good
    write_rows(file, [dialogue(0), {"messages": [turn("user", "Hi")]}])
    with pytest.raises(DataError, match="line 2: a row must have a turn of the assistant"):
        data_of(tokenizer, tmp_path / "wrong", file)
    assert list((tmp_path / "wrong").glob("*")) == []


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=4))
def test_rows_begin_with_the_ids_that_serving_is_asked_with(
    tokenizer: BPETokenizer, tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    messages = [one for asked, said in pairs for one in (turn("user", asked), turn("assistant", said))]
    encoder = row_encoder(tokenizer, "assistant")
    row = read({"messages": messages})
    file = write_rows(tmp_path_factory.mktemp("rows") / "a.jsonl", [{"messages": messages}])
    stored = encoder.encode(row, "here")
    # White space at the start of an answer may form one token with the line end before it.
    assert check_served(file, [stored], encoder) <= sum(said[0].isspace() for _, said in pairs)
    wrong = stored._replace(ids=stored.ids[::-1].copy())
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: the ids trained on must be those served; from token 0"):
        check_served(file, [wrong], encoder)
