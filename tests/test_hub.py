"""No minute of retries where there is no network, and nothing asked for that is in the cache."""

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from fake_hub import SHA, fake_hub

from dds_train import hub
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub.reachable.cache_clear()
    huggingface_hub.close_session()  # type: ignore[attr-defined]
    yield
    hub.reachable.cache_clear()
    huggingface_hub.close_session()  # type: ignore[attr-defined]


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A hub that takes connections and never answers."""
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield server


def cached(teacher: Path, tmp_path: Path, repository: str = "owner/name") -> Path:
    folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    return Path(shutil.copytree(teacher, folder / "snapshots" / "abc"))


def test_a_hub_that_answers_is_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        assert hub.reachable()
        hub.reachable.cache_clear()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert not hub.reachable()


def test_a_proxy_may_know_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    assert not hub.reachable()
    hub.reachable.cache_clear()
    huggingface_hub.close_session()  # type: ignore[attr-defined]
    with fake_hub() as server:
        monkeypatch.setenv("http_proxy", server.url)
        assert hub.reachable()


def test_a_silent_hub_is_asked_once(silent: socket.socket, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"the hub did not deliver it \(the hub does not answer\); .*hf download owner/name"):
        DiffusionCheckpoint("owner/name").teacher()
    silent.setblocking(False)
    silent.accept()[0].close()
    with pytest.raises(BlockingIOError):
        silent.accept()
    assert "fetching owner/name (configurations) from http://127.0.0.1:" in capsys.readouterr().out


@pytest.mark.usefixtures("silent")
def test_what_is_in_the_cache_is_not_asked_for(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked() -> bool:
        raise AssertionError("asked the hub")

    snapshot = cached(tiny("epsilon"), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(hub, "reachable", asked)
        checkpoint = DiffusionCheckpoint("owner/name")
        checkpoint.teacher()
        checkpoint.autoencoder()
        checkpoint.text_encoder()
        assert checkpoint.digest()
        assert "fetching" not in capsys.readouterr().out
    next((snapshot / "unet").glob("*.safetensors")).unlink()
    DiffusionCheckpoint("owner/name").autoencoder()  # whose part is there
    with pytest.raises(UserError, match="is not on this disk as a whole and the hub did not deliver it"):
        DiffusionCheckpoint("owner/name").teacher()


def test_of_a_repository_what_is_loaded_is_fetched(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.relative_to(tiny("epsilon")).as_posix(): path for path in tiny("epsilon").rglob("*") if path.is_file()}
    weights = "unet/diffusion_pytorch_model"
    names = [
        *files,
        "v1-5.ckpt",
        "README.md",
        f"{weights}.bin",
        f"{weights}.fp16.safetensors",
        f"{weights}.non_ema.safetensors",
        "unet/flax_model.msgpack",
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
    ]
    chosen: list[str] = []

    def fetch(repository: str, what: str, choose: Callable[[list[str]], list[str]]) -> Path:
        chosen[:] = choose(names)
        return tiny("epsilon")

    monkeypatch.setattr(hub, "fetch", fetch)
    configs = {"model_index.json", "scheduler/scheduler_config.json", "safety_checker/config.json"}
    configs |= {f"{part}/config.json" for part in ("unet", "vae", "text_encoder")}
    DiffusionCheckpoint("owner/name").load_denoiser()
    assert set(chosen) == configs | {f"{weights}.safetensors"}
    names.remove(f"{weights}.safetensors")
    DiffusionCheckpoint("owner/name").load_denoiser()
    assert set(chosen) == configs | {f"{weights}.bin"}
    names.remove(f"{weights}.bin")
    names.append("unet/diffusion_pytorch_model.safetensors.index.fp16.json")
    names.extend(f"unet/diffusion_pytorch_model.{number}" for number in ("fp16-00001-of-00002.safetensors", "x"))
    names.append("unet/diffusion_pytorch_model-00002-of-00002.fp16.safetensors")
    DiffusionCheckpoint("owner/name").load_denoiser()
    assert set(chosen) - configs == {
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
        "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.fp16.safetensors",
    }


def test_a_repository_is_fetched_once(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {path.relative_to(tiny("epsilon")).as_posix(): path for path in tiny("epsilon").rglob("*") if path.is_file()}
    with fake_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.repos["owner/name"] = {name: path.read_bytes() for name, path in files.items()}
        for _ in range(2):
            DiffusionCheckpoint("owner/name").autoencoder()
        said = [f"fetching owner/name ({what}) from {server.url}\n" for what in ("configurations", "vae")]
        assert capsys.readouterr().out == "".join(said)
        weights = {path.partition("?")[0].rpartition("/resolve/")[2] for path in server.asked if "safetensors" in path}
        assert weights == {f"{SHA}/vae/diffusion_pytorch_model.safetensors"}
        server.repos["owner/lora"] = {"README.md": b""}
        with pytest.raises(UserError, match=r"teacher.path=owner/lora: no model_index\.json in that repository"):
            DiffusionCheckpoint("owner/lora").autoencoder()
