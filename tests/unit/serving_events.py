"""What clients build from the events of a stream, which must come in the order of their API."""

import msgspec

OPENING = {"message": ("output_text",), "reasoning": ("reasoning_text",), "function_call": ()}


def message_content(events):
    """The content that a client builds from events, in Anthropic's order."""
    blocks = []
    open_index = None
    assert [event["type"] for event in events[:2]] == ["message_start", "ping"]
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    for event in events[2:-2]:
        if event["type"] == "content_block_start":
            assert open_index is None
            open_index = event["index"]
            assert open_index == len(blocks)
            blocks.append(event["content_block"] | {"json": ""})
            continue
        assert event["index"] == open_index
        if event["type"] == "content_block_stop":
            open_index = None
            continue
        kind, field = {
            "text_delta": ("text", "text"),
            "thinking_delta": ("thinking", "thinking"),
            "signature_delta": ("thinking", "signature"),
            "input_json_delta": ("tool_use", "json"),
        }[event["delta"]["type"]]
        assert blocks[-1]["type"] == kind
        blocks[-1][field] += event["delta"].get("partial_json", event["delta"].get(field, ""))
    assert open_index is None
    for block in blocks:
        text = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = msgspec.json.decode(text or "{}")
    return blocks


def response_items(events):
    """The items that a client builds from events, in OpenAI's order."""
    items = []
    texts = []
    kinds = [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert kinds[:2] == ["response.created", "response.in_progress"]
    body = iter(events[2:-1])
    for event in body:
        assert event["type"] == "response.output_item.added"
        index, kind, own_id = event["output_index"], event["item"]["type"], event["item"]["id"]
        assert index == len(items)
        closing = 1
        if OPENING[kind]:
            part = next(body)
            assert (part["type"], part["part"]["type"]) == ("response.content_part.added", *OPENING[kind])
            closing = 2
        text = ""
        prefix = {"function_call": "function_call_arguments"}.get(kind) or OPENING[kind][0]
        while (event := next(body))["type"] == f"response.{prefix}.delta":
            assert (event["item_id"], event["output_index"]) == (own_id, index)
            text += event["delta"]
        assert event["type"] == f"response.{prefix}.done"
        assert event.get("text", event.get("arguments")) == text
        for _ in range(closing - 1):
            assert next(body)["type"] == "response.content_part.done"
        done = next(body)
        assert (done["type"], done["item"]["id"]) == ("response.output_item.done", own_id)
        items.append(done["item"])
        texts.append(text)
    return items, texts
