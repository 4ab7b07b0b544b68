"""No minute of retries where there is no network, and no false alarm where there is a way out."""

import socket
from collections.abc import Iterator

import pytest

from dds_train import hub


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    hub.reachable.cache_clear()
    yield
    hub.reachable.cache_clear()


def no_names(*_: object) -> None:
    raise socket.gaierror("Name or service not known")


def test_a_name_that_is_not_known_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    assert not hub.reachable()


def test_a_proxy_may_know_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert hub.reachable()


def test_a_hub_of_ones_own_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port: asked.append(host))
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example:8443")
    assert hub.reachable()
    assert asked == ["hub.example"]


def test_offline_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub.reachable()
