"""What deploy/, docker/ and examples/ give to Kubernetes and routers is valid, of one piece and known to the server."""

import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema_rs
import kubernetes_validate
import pytest
import yaml
from tools import chart

from llm.serving.routes import OPEN_ROUTES
from llm.settings.server import ServerConfig, load_server_config
from tests.unit.test_docker import exposed_names

ROOT = Path(__file__).parents[2]
RENDERED = sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
MANIFESTS = [
    *RENDERED,
    ROOT / "deploy/gateway/inference-pool.yaml",
    ROOT / "deploy/kserve/inference-service.yaml",
    ROOT / "examples/distributed/kubernetes.yaml",
]
# The oldest that the chart says it takes, and the newest of which there are schemas.
KUBERNETES = ("1.29", "1.37")
# The fields used here of the custom resources' own definitions, which no package has; any other is an error.
CUSTOM = json.loads(Path(__file__).with_name("custom_resources.json").read_text())
SETTING = "LLM_SERVER__"


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


def by_kind(file: Path) -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in documents(file)}


def pod_of(document: dict[str, Any]) -> dict[str, Any]:
    if document["kind"] == "InferenceService":
        return document["spec"]["predictor"]
    return document["spec"]["template"]["spec"]


SERVERS = [
    pytest.param(pod_of(document), id=file.stem)
    for file in MANIFESTS
    for document in documents(file)
    if document["kind"] in {"Deployment", "InferenceService"}
]


def name_of(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


def check_custom(document: dict[str, Any]) -> None:
    known = CUSTOM[document["kind"]]
    assert document["apiVersion"] == known["apiVersion"]
    jsonschema_rs.validate(known["spec"] | {"$defs": CUSTOM["$defs"]}, document["spec"])


@pytest.mark.parametrize("file", MANIFESTS, ids=name_of)
def test_manifests_are_valid_by_kubernetes_own_schemas(file: Path) -> None:
    for document in documents(file):
        if document["kind"] in CUSTOM:
            check_custom(document)
            continue
        for version in KUBERNETES:
            kubernetes_validate.validate(document, version, strict=True)


def test_misspelt_fields_are_found() -> None:
    deployment = by_kind(ROOT / "deploy/kubernetes/basic.yaml")["Deployment"]
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(deployment, KUBERNETES[-1], strict=True)
    scaled = by_kind(ROOT / "deploy/kubernetes/keda.yaml")["ScaledObject"]
    scaled["spec"]["minReplicas"] = 1
    with pytest.raises(jsonschema_rs.ValidationError, match="minReplicas"):
        check_custom(scaled)


def test_a_pod_of_kserve_is_a_valid_pod() -> None:
    pod = dict(pod_of(documents(ROOT / "deploy/kserve/inference-service.yaml")[0]))
    for own in ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"):
        del pod[own]
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "model"}, "spec": pod}
    kubernetes_validate.validate(manifest, KUBERNETES[-1], strict=True)


@pytest.mark.parametrize("file", RENDERED, ids=name_of)
def test_rendered_manifests_are_those_of_the_chart(file: Path) -> None:
    digest = re.search(r"^# digest: (\w+)$", file.read_text(), re.MULTILINE)[1]
    assert digest == chart.digest(ROOT / "deploy/values" / file.name), "run `make chart`"


def test_every_file_of_values_is_rendered() -> None:
    assert [file.name for file in RENDERED] == sorted(file.name for file in (ROOT / "deploy/values").iterdir())


@pytest.mark.parametrize("file", RENDERED, ids=name_of)
def test_everything_names_the_one_deployment_and_its_pods(file: Path) -> None:
    kinds = by_kind(file)
    deployment = kinds["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [deployment["spec"]["selector"]["matchLabels"], kinds["Service"]["spec"]["selector"]]
    selectors.append(kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"])
    assert all(selector.items() <= labels.items() for selector in selectors)
    if monitor := kinds.get("ServiceMonitor"):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= kinds["Service"]["metadata"]["labels"].items()
        assert monitor["spec"]["endpoints"][0]["port"] == kinds["Service"]["spec"]["ports"][0]["name"]
        assert monitor["spec"]["endpoints"][0]["path"] in OPEN_ROUTES
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        if scaler := kinds.get(kind):
            assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
            assert "replicas" not in deployment["spec"]  # the autoscaler's to set


def test_the_gateway_s_pool_selects_the_chart_s_pods() -> None:
    pool, route = documents(ROOT / "deploy/gateway/inference-pool.yaml")
    template = by_kind(ROOT / "deploy/kubernetes/basic.yaml")["Deployment"]["spec"]["template"]
    assert pool["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    ports = [port["containerPort"] for port in template["spec"]["containers"][0]["ports"]]
    assert [port["number"] for port in pool["spec"]["targetPorts"]] == ports
    backend = route["spec"]["rules"][0]["backendRefs"][0]
    assert (backend["kind"], backend["name"]) == (pool["kind"], pool["metadata"]["name"])


def test_the_patch_for_cache_events_fits_the_chart_s_deployment_and_the_server() -> None:
    [patch] = documents(ROOT / "deploy/gateway/kv-events.yaml")
    deployment = by_kind(ROOT / "deploy/kubernetes/basic.yaml")["Deployment"]
    [container], [own] = pod_of(deployment)["containers"], patch["spec"]["template"]["spec"]["containers"]
    assert own["name"] == container["name"]
    # What a strategic merge does with lists that have other keys than the patch.
    for key, name in (("env", "name"), ("ports", "containerPort")):
        assert not {item[name] for item in container[key]} & {item[name] for item in own[key]}
        container[key] += own[key]
    kubernetes_validate.validate(deployment, KUBERNETES[-1], strict=True)
    config = load_server_config(None, {}, {item["name"]: item["value"] for item in container["env"] if "value" in item})
    events = config.kv_events_config
    assert events.is_on
    assert (events.endpoint, events.replay_endpoint) == tuple(
        f"tcp://*:{port['containerPort']}" for port in own["ports"]
    )
    defined = [item["name"] for item in own["env"]]
    assert defined.index("POD_IP") < defined.index("LLM_SERVER__KV_EVENTS_CONFIG__TOPIC")
    port = container["args"][container["args"].index("--port") + 1]
    assert events.topic == f"kv@$(POD_IP):{port}@{config.served_model_name[0]}"


@pytest.mark.parametrize("pod", SERVERS)
def test_a_server_accepts_its_settings_and_drains_within_its_pod_s_time(pod: dict[str, Any]) -> None:
    container = pod["containers"][0]
    variables = {item["name"]: item["value"] for item in container["env"] if "value" in item}
    config = load_server_config(None, {}, variables)
    assert config != ServerConfig()  # the variables have been read
    assert all(name.startswith(SETTING) for name in variables)
    word, delay_s = container["lifecycle"]["preStop"]["exec"]["command"]
    assert word == "sleep"
    # Some seconds more, in which the last answers are sent and the engine ends.
    assert pod["terminationGracePeriodSeconds"] >= int(delay_s) + config.grace_s + 10
    readiness = container["readinessProbe"]
    assert int(delay_s) >= readiness["periodSeconds"]


@pytest.mark.parametrize("pod", SERVERS)
def test_probes_ask_a_route_that_needs_no_key_at_the_server_s_port(pod: dict[str, Any]) -> None:
    container = pod["containers"][0]
    words = container["args"]
    port = int(words[words.index("--port") + 1])
    assert [declared["containerPort"] for declared in container["ports"]] == [port]
    assert words[words.index("--host") + 1] == "0.0.0.0"
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[kind]["httpGet"]
        assert probe["path"] in OPEN_ROUTES
        assert probe["port"] in {port, container["ports"][0]["name"]}


@pytest.mark.parametrize("pod", SERVERS)
def test_pods_run_as_the_image_s_user_on_a_read_only_root(pod: dict[str, Any]) -> None:
    uid = int(re.search(r"^USER (\d+)$", (ROOT / "docker/Dockerfile.cpu").read_text(), re.MULTILINE)[1])
    assert pod["securityContext"]["runAsUser"] == uid
    container = pod["containers"][0]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert {"/model", "/tmp", "/home/llm"} == set(mounts)
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    assert container["args"][1].startswith("/model")


def test_autoscalers_ask_for_metrics_that_the_server_has() -> None:
    scaler = by_kind(ROOT / "deploy/kubernetes/hpa.yaml")["HorizontalPodAutoscaler"]
    asked = {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]}
    scaled = by_kind(ROOT / "deploy/kubernetes/keda.yaml")["ScaledObject"]
    queries = " ".join(trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"])
    assert asked == set(re.findall(r"llm_\w+", queries)) == {"llm_requests_in_flight", "llm_requests_waiting"}
    assert asked <= exposed_names()


def seconds_until_a_leaving_server_is_down(lines: list[list[str]]) -> float:
    """An interval until the check that sees it, and the shorter ones until it is sure."""
    [words] = [words for words in lines if words[:2] == ["default-server", "check"]]
    options = dict(itertools.pairwise(words))
    usual_s, sure_s = (seconds(options[name]) for name in ("inter", "fastinter"))
    return usual_s + (int(options["fall"]) - 1) * sure_s


def seconds(time: str) -> float:
    return int(time.removesuffix("ms")) / 1000 if time.endswith("ms") else int(time.removesuffix("s"))


def test_router_of_the_compose_file_asks_its_replicas() -> None:
    services = yaml.safe_load((ROOT / "docker/replicas.yaml").read_text())["services"]
    replicas = {name: service for name, service in services.items() if name != "router"}
    lines = [
        shlex.split(line, comments=True) for line in (ROOT / "docker/haproxy/haproxy.cfg").read_text().splitlines()
    ]
    servers = {words[1]: words[2] for words in lines if words[:1] == ["server"]}
    assert servers == {name: f"{name}:8000" for name in replicas}
    assert ["option", "httpchk", "GET", "/health"] in lines
    for service in replicas.values():
        variables = {name: value for name, value in service["environment"].items() if name.startswith(SETTING)}
        config = load_server_config(None, {}, variables)
        assert int(service["stop_grace_period"].removesuffix("s")) >= config.drain_delay_s + config.grace_s + 10
        assert config.drain_delay_s >= 2 * seconds_until_a_leaving_server_is_down(lines)
        assert service["command"][-1] == "8000"
