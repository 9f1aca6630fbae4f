import hashlib
import logging

import pytest

from llm.errors import ConfigError
from llm.serving.auth import Authenticator
from llm.serving.errors import APIError
from llm.settings.keys import read_key_file

KEYS = Authenticator(["first-key", "schlüssel", "sha256:" + hashlib.sha256(b"hashed-key").hexdigest()])


def digest_of(text):
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def name_of(keys, sent):
    return keys.check({"authorization": f"Bearer {sent}"}).name


def is_refused(keys, sent):
    try:
        keys.check({"authorization": f"Bearer {sent}"})
    except APIError as error:
        return error.status == 401
    return False


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"authorization": "Bearer first-key"}, "api-key-1"),
        ({"authorization": "bearer first-key"}, "api-key-1"),
        ({"authorization": "Bearer " + "schlüssel".encode().decode("latin-1")}, "api-key-2"),
        ({"x-api-key": "first-key"}, "api-key-1"),
        ({"authorization": "Basic abc", "x-api-key": "first-key"}, "api-key-1"),
        ({"x-api-key": "hashed-key"}, "api-key-3"),
    ],
)
def test_right_keys_are_let_in(headers, name):
    assert KEYS.check(headers).name == name


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong-key"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer first-key-and-more"},
        {"authorization": "first-key"},
        {"x-api-key": ""},
        {"x-api-key": "\xff"},
        {"x-api-key": digest_of("hashed-key")},
    ],
)
def test_wrong_keys_are_refused_without_being_shown(headers):
    with pytest.raises(APIError) as caught:
        KEYS.check(headers)
    assert caught.value.status == 401
    assert caught.value.body.code == "invalid_api_key"
    assert (b"www-authenticate", b"Bearer") in caught.value.headers
    assert "wrong-key" not in caught.value.body.message


def test_without_keys_everyone_is_let_in():
    assert Authenticator([]).check({}) is None


def test_key_file_holds_keys_digests_and_limits(tmp_path):
    file = tmp_path / "keys.toml"
    file.write_text(f"""
        [alice]
        key = "alice-key"
        requests_per_minute = 60
        concurrent_requests = 4

        ["team.bob"]
        key = "{digest_of("bob-key").upper().replace("SHA256", "sha256")}"
    """)
    keys = Authenticator(["given-key"], str(file))
    assert [name_of(keys, sent) for sent in ("alice-key", "bob-key", "given-key")] == ["alice", "team.bob", "api-key-1"]
    read = read_key_file(str(file))
    assert (read["alice"].requests_per_minute, read["alice"].tokens_per_minute) == (60, None)
    assert read["alice"].key == digest_of("alice-key")  # the text of a key isn't kept
    assert "alice" not in repr(read["alice"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no API key\nhint: add a table"),
        ("[alice]\nkey = secret-key", "is not valid TOML"),
        ("alice = 'secret-key'", "key 'alice' must be a table with the key as a text"),
        ("[alice]\nkey = 123454321", "key 'alice' must be a table with the key as a text"),
        ("[alice]\nkey = ''", "key 'alice' must be a table with the key as a text"),
        ("[alice]\nkey = 'secret-key'\nrequests_per_minut = 1", "did you mean `requests_per_minute`"),
        (
            "[alice]\nkey = 'secret-key'\ntokens_per_minute = 0",
            "key 'alice': `tokens_per_minute` must be .* >= 1, got 0",
        ),
        ("[alice]\nkey = 'sha256:secret-key'", "64 hexadecimal digits after `sha256:`\nhint: printf"),
        ("['a b']\nkey = 'secret-key'", "key 'a b' must be named by"),
        ("[a]\nkey = 'secret-key'\n[b]\nkey = 'secret-key'", "keys 'a' and 'b' are the same"),
    ],
)
def test_wrong_key_file_is_refused_without_showing_a_key(tmp_path, text, message):
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        Authenticator([], str(file))
    assert "secret-key" not in str(caught.value)
    assert "123454321" not in str(caught.value)


def test_missing_key_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no config file"):
        Authenticator([], str(tmp_path / "keys.toml"))


def test_reload_adds_and_revokes_keys_and_an_invalid_file_changes_nothing(tmp_path, caplog):
    file = tmp_path / "keys.toml"
    file.write_text("[old]\nkey = 'old-key'\n[kept]\nkey = 'kept-key'\nrequests_per_minute = 1")
    keys = Authenticator([], str(file))
    kept = keys.check({"x-api-key": "kept-key"})
    file.write_text("[new]\nkey = 'new-key'\n[kept]\nkey = 'kept-key'\nrequests_per_minute = 1")
    keys.reload()
    assert is_refused(keys, "old-key")
    assert name_of(keys, "new-key") == "new"
    assert keys.check({"x-api-key": "kept-key"}) is kept  # with what it has used
    for wrong in ("[new", "", "[new]\nkey = 'new-key'\nlimit = 3"):
        file.write_text(wrong)
        with caplog.at_level(logging.ERROR, logger="llm"):
            keys.reload()
        assert "api keys not reloaded, the old ones stay" in caplog.records[-1].getMessage()
        assert name_of(keys, "new-key") == "new"
    file.unlink()
    keys.reload()
    assert is_refused(keys, "old-key")
    assert name_of(keys, "new-key") == "new"
