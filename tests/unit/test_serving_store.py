"""The store of responses: bounds, owners and conversations, in memory and in a file."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import ServerError
from llm.serving.store import Bounds, MemoryStore, Record, SqliteStore, open_store

PLENTY = Bounds(max_count=100, max_bytes=10**6)


def record(name, size=10, previous_id=None, **fields):
    values = {"id": name, "owner": "", "previous_id": previous_id, "response": b"r" * size, "input": b"[]"} | fields
    return Record(**values)


@pytest.fixture(params=["memory", "file"])
def opened(request, tmp_path):
    """Opens a store with bounds; a file is the same one each time."""
    stores = []

    def open_with(bounds=PLENTY):
        stores.append(open_store(None if request.param == "memory" else str(tmp_path / "store.db"), bounds))
        return stores[-1]

    yield open_with
    for store in stores:
        asyncio.run(store.close())


def ids_in(store, names):
    async def found():
        return [name for name in names if await store.get(name, "") is not None]

    return asyncio.run(found())


def put(store, *records):
    async def each():
        for one in records:
            await store.put(one)

    asyncio.run(each())


def test_record_comes_back_as_it_was_until_it_is_deleted(opened):
    store = opened()
    kept = record("a", response="é🙂".encode(), previous_id="z", owner="key", is_running=True)
    put(store, kept)
    assert asyncio.run(store.get("a", "key")) == kept
    assert asyncio.run(store.running()) == [kept]
    assert asyncio.run(store.get("a", "other")) is None
    assert asyncio.run(store.delete("a", "other")) is False
    assert asyncio.run(store.delete("a", "key")) is True
    assert asyncio.run(store.delete("a", "key")) is False
    assert asyncio.run(store.size()) == (0, 0)


def test_least_recently_used_record_goes_first(opened):
    store = opened(Bounds(max_count=3, max_bytes=10**6))
    put(store, record("a"), record("b"), record("c"))
    assert ids_in(store, "a") == ["a"]
    put(store, record("d"))
    assert ids_in(store, "abcd") == ["a", "c", "d"]


def test_bytes_are_bounded_and_a_record_too_large_is_not_kept(opened):
    limit = record("a", 1000).num_bytes * 2
    store = opened(Bounds(max_count=100, max_bytes=limit))
    put(store, record("a", 1000), record("b", 1000))
    assert asyncio.run(store.size()) == (2, limit)
    put(store, record("c", 1))
    assert ids_in(store, "abc") == ["b", "c"]
    put(store, record("b", 10))
    assert asyncio.run(store.size())[0] == 2
    put(store, record("d", limit))
    assert asyncio.run(store.size()) == (0, 0)


def test_conversation_is_told_from_its_beginning_or_by_what_is_missing(opened):
    store = opened()
    put(store, record("a"), record("b", previous_id="a"), record("c", previous_id="b"))
    assert [one.id for one in asyncio.run(store.conversation("c", ""))] == ["a", "b", "c"]
    asyncio.run(store.delete("a", ""))
    assert asyncio.run(store.conversation("c", "")) == "a"


def test_file_keeps_what_fits_new_bounds_and_must_be_a_store(tmp_path):
    path = str(tmp_path / "store.db")
    first = SqliteStore(path, PLENTY)
    put(first, *(record(name) for name in "abcd"))
    asyncio.run(first.close())
    second = SqliteStore(path, Bounds(max_count=2, max_bytes=10**6))
    assert ids_in(second, "abcd") == ["c", "d"]
    asyncio.run(second.close())
    (tmp_path / "text").write_text("no database " * 100)
    for wrong in (tmp_path / "text", tmp_path / "missing" / "store.db"):
        with pytest.raises(ServerError, match="can't be opened"):
            SqliteStore(str(wrong), PLENTY)


STEPS = st.lists(st.tuples(st.sampled_from(["put", "get", "delete"]), st.sampled_from("abcdef"), st.integers(0, 3000)))


@given(STEPS, st.integers(0, 4), st.integers(0, 6000))
def test_file_and_memory_hold_the_same_within_bounds(tmp_path_factory, steps, max_count, max_bytes):
    bounds = Bounds(max_count=max_count, max_bytes=max_bytes)
    memory, file = MemoryStore(bounds), SqliteStore(":memory:", bounds)

    async def both():
        for kind, name, size in steps:
            if kind == "put":
                await memory.put(record(name, size))
                await file.put(record(name, size))
            elif kind == "get":
                assert await memory.get(name, "") == await file.get(name, "")
            else:
                assert await memory.delete(name, "") == await file.delete(name, "")
            held = await memory.size()
            assert held == await file.size()
            assert held[0] <= max_count
            assert held[1] <= max_bytes
        await file.close()

    asyncio.run(both())
