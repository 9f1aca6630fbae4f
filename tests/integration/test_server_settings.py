"""TLS, and settings from a file, the environment and the command line."""

import os
import shutil
import socket
import ssl
import subprocess
import sys

import httpx
import openai
import pytest

from llm.errors import ServerError
from llm.serving import ServerConfig, ServerHandle
from tests.integration.server_client import DEADLINE_S, complete


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for localhost, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subprocess.run([*made, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


def test_tls_server_answers_clients_that_trust_its_certificate(checkpoint, certificate):
    chain, key = map(str, certificate)
    with ServerHandle(checkpoint, ServerConfig(port=0, tls_certificate=chain, tls_key=key)) as server:
        assert server.base_url.startswith("https://127.0.0.1:")
        trust = ssl.create_default_context(cafile=chain)
        http = httpx.Client(verify=trust, trust_env=False)
        client = openai.OpenAI(base_url=server.base_url, api_key="any", http_client=http, max_retries=0)
        whole = complete(client)
        assert "".join(chunk.choices[0].text for chunk in complete(client, stream=True)) == whole.choices[0].text
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{server.url}/health", trust_env=False)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{server.url.rsplit(':', 1)[1]}/health", trust_env=False)
        assert httpx.get(f"{server.url}/health", verify=trust, trust_env=False).is_success


@pytest.mark.parametrize("broken", ["missing", "other key", "not PEM"])
def test_certificate_that_cannot_be_used_is_refused_before_listening(checkpoint, certificate, tmp_path, broken):
    wrong = tmp_path / "wrong.pem"
    if broken == "other key":
        subprocess.run(["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", wrong], check=True)
    elif broken == "not PEM":
        wrong.write_text("no key")
    config = ServerConfig(port=0, tls_certificate=str(certificate[0]), tls_key=str(wrong))
    with pytest.raises(ServerError, match="exited with code 2") as caught, ServerHandle(checkpoint, config):
        pass
    assert "error: `tls_" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert "listening" not in str(caught.value)


def test_file_environment_and_options_configure_the_command_in_this_order(checkpoint, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    file = tmp_path / "server.toml"
    file.write_text('port = 1\nserved_model_name = ["from-file"]\nlog_format = "json"\n[engine]\nmax_model_len = 100\n')
    environ = os.environ | {"LLM_SERVER__PORT": str(port), "LLM_SERVER__SERVED_MODEL_NAME": '["from-environment"]'}
    command = [sys.executable, "-c", "from llm.cli.main import main; main()", "serve", checkpoint, "--config", file]
    process = subprocess.Popen(
        [*command, "--served-model-name", "from-option"], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        while b"http://" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0)
        assert [model.id for model in client.models.list()] == ["from-option"]
        with pytest.raises(openai.BadRequestError, match="100"):
            complete(client, model="from-option", max_tokens=200)
    finally:
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    assert process.stderr.readline().startswith(b'{"time":"')
