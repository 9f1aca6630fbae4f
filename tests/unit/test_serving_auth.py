import pytest

from llm.serving.auth import Authenticator
from llm.serving.errors import APIError

KEYS = Authenticator(["first-key", "schlüssel"])


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer first-key"},
        {"authorization": "bearer first-key"},
        {"authorization": "Bearer " + "schlüssel".encode().decode("latin-1")},
        {"x-api-key": "first-key"},
        {"authorization": "Basic abc", "x-api-key": "first-key"},
    ],
)
def test_right_keys_are_let_in(headers):
    assert KEYS.check(headers) is None


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
