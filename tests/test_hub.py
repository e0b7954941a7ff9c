"""The hub: what goes there and comes back, with a hub made of folders; nobody is asked who was not named."""

import builtins
import fnmatch
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from stedm import Segmenter, StyleDiffusion, hub
from stedm.errors import UserError
from stedm.selftest import CLASSES, SIZE_PX, untrained

library = pytest.importorskip("huggingface_hub")


def copied(source: Path, target: Path, patterns: list[str]) -> None:
    """Copy the files that the patterns allow, as the hub's library matches them."""
    for name in library.utils.filter_repo_objects(files(source), allow_patterns=patterns):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, target / name)


class FakeHub:
    """Repositories are folders below `root`; every call is recorded."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, []

    def HfApi(self, token: str | None = None) -> "FakeHub":
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", repo_id, private))
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, *, repo_id: str, folder_path: str, allow_patterns: list[str], commit_message: str) -> str:
        copied(Path(folder_path), self.root / repo_id, allow_patterns)
        return f"https://hub.example/{repo_id}"

    def snapshot_download(self, repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.calls.append(("download", repo_id, revision))
        copy = self.root / "cache" / repo_id
        copied(self.root / repo_id, copy, allow_patterns)
        return str(copy)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_sockets: list[Any]) -> FakeHub:
    made = FakeHub(tmp_path / "hub")
    for name in ("HfApi", "snapshot_download"):
        monkeypatch.setattr(library, name, getattr(made, name))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return made


def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(classes=CLASSES, encoder="tu-test_resnet", space_to_depth=2).eval()


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_generator_goes_to_the_hub_and_comes_back_the_same(fake: FakeHub) -> None:
    model = untrained().eval()
    assert model.push_to_hub("me/tissue", token="t") == "https://hub.example/me/tissue"
    assert fake.calls == [("token", "t"), ("create", "me/tissue", True)]  # private, unless told otherwise
    parts = ("autoencoder", "style_encoder", "unet")
    named = [f"{part}/{name}" for part in parts for name in ("config.json", "model.safetensors")]
    assert files(fake.root / "me" / "tissue") == sorted(["README.md", "model_index.json", *named])
    back = StyleDiffusion.from_pretrained("me/tissue", revision="v1")
    assert fake.calls[-1] == ("download", "me/tissue", "v1")
    state = back.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert back.classes == CLASSES and back.patch_px == SIZE_PX


def test_a_segmenter_goes_to_the_hub_and_comes_back_the_same(fake: FakeHub) -> None:
    model = segmenter()
    model.push_to_hub("me/segmenter", private=False)
    assert ("create", "me/segmenter", False) in fake.calls
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    back = Segmenter.from_pretrained("me/segmenter")
    state = back.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    # Other memory, and on some processors other kernels: the last bit may differ.
    np.testing.assert_allclose(model.probabilities(images), back.probabilities(images), atol=1e-6)


def test_only_configs_weights_and_the_card_are_fetched(fake: FakeHub) -> None:
    segmenter().push_to_hub("me/segmenter")
    repository = fake.root / "me" / "segmenter"
    for name in ("pytorch_model.bin", "modeling.py", "x.pkl", "training/last.ckpt", "tokenizer_config.json"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_bytes(b"x")
    Segmenter.from_pretrained("me/segmenter")
    assert files(fake.root / "cache") == [
        f"me/segmenter/{n}" for n in ("README.md", "config.json", "model.safetensors")
    ]
    allowed = [name for name in ("a.pkl", "pytorch_model.bin", "b.py", "c/d.ckpt", "e.pt", "f.json", "config.json.py")
               if any(fnmatch.fnmatch(name, pattern) for pattern in hub.FILES)]  # fmt: skip
    assert allowed == []


def test_only_text_that_is_no_folder_is_asked_of_the_hub(fake: FakeHub) -> None:
    Path("runs").mkdir()
    segmenter().save_pretrained("user/model")
    Segmenter.from_pretrained("user/model")  # a folder of that name comes first
    for missing in ("runs/dmeo", "./user/nothing", "user/nothing", "model", "a/b/c", Path("him/model")):
        for kind in (Segmenter, StyleDiffusion):
            with pytest.raises(UserError, match=r"not found"):
                kind.from_pretrained(missing)
    assert fake.calls == []


def test_the_card_of_the_run_goes_along_under_how_to_load(fake: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("# Model card: demo\n\nMean IoU 0.76.\n")
    segmenter().push_to_hub("me/segmenter", card=tmp_path / "card.md")
    text = (fake.root / "me" / "segmenter" / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "stedm"
    assert 'Segmenter.from_pretrained("me/segmenter")' in body and body.endswith("Mean IoU 0.76.\n")
    (tmp_path / "own.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    assert hub.card_text("Segmenter", "me/x", tmp_path / "own.md") == "---\nlicense: mit\n---\n# Mine\n"
    with pytest.raises(UserError, match=r"none\.md"):
        segmenter().push_to_hub("me/other", card=tmp_path / "none.md")
    assert not (fake.root / "me" / "other").exists()


def test_what_comes_from_the_hub_is_checked_as_any_folder(fake: FakeHub) -> None:
    segmenter().push_to_hub("me/segmenter")
    path = fake.root / "me" / "segmenter" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"class": "os.system"}))
    with pytest.raises(UserError, match="holds a os"):
        Segmenter.from_pretrained("me/segmenter")
    with pytest.raises(UserError, match="no hub id"):
        segmenter().push_to_hub("https://elsewhere.example/x")


def test_without_the_extra_the_command_is_named(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    import_module = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        if name == "huggingface_hub":
            raise ImportError("none")
        return import_module(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for act in (lambda: Segmenter.from_pretrained("me/x"), lambda: segmenter().push_to_hub("me/x")):
        with pytest.raises(UserError, match=r"pip install 'stedm\[hub\]'"):
            act()


class Refused(OSError):
    """What the hub's library raises for an answer of the server."""

    class response:
        status_code = 401


@pytest.mark.parametrize(
    "error, said",
    [
        (Refused("no"), "status 401.*hf auth login"),
        (ConnectionError("gone"), "offline"),
        (ValueError("id"), "no hub id"),
        (OSError(28, "No space left on device"), "HF_HOME"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fails(*_: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr(library, "snapshot_download", fails)
    monkeypatch.setattr(fake, "create_repo", fails)
    for act in (lambda: StyleDiffusion.from_pretrained("me/x"), lambda: segmenter().push_to_hub("me/x")):
        with pytest.raises(UserError, match=said) as raised:
            act()
        assert "\n" not in str(raised.value) and "me/x" in str(raised.value)


def test_the_real_library_without_a_network_says_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_sockets: list[Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(library.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="offline"):
        StyleDiffusion.from_pretrained("somebody/model")
    with pytest.raises(UserError, match="offline"):
        segmenter().push_to_hub("somebody/model")
    assert no_sockets == []
