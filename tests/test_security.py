"""Files from strangers are data: no pickle is opened, no class named, nothing fetched, and the source stays so."""

import ast
import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hostile_formats import Killed, train
from mutations import UP, limits
from safetensors.torch import load_file, save_file

from stedm import Segmenter, StyleDiffusion
from stedm.config_file import load_config
from stedm.errors import UserError
from stedm.evaluation.encoders import kid_encoder
from stedm.files import read_json, write_json
from stedm.models.autoencoder import FirstStage
from stedm.models.style import StyleExtractor
from stedm.models.tensor_file import read_tensors
from stedm.models.timm_backbone import timm_backbone
from stedm.selftest import untrained
from stedm.stages.few_step import read_pairs

SOURCES = sorted((Path(__file__).parents[1] / "src").rglob("*.py"))
BUILTINS = {"eval", "exec", "compile", "__import__"}
MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
CALLS = {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "pandas.read_pickle", "pd.read_pickle"}


def findings(source: str) -> list[str]:
    """What could execute something, in a module's source."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        found += [name for name in names if name.split(".")[0] in MODULES]
        if isinstance(node, ast.Call):
            called, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            found += [called] if called in CALLS | BUILTINS else []
            found += [called] if called == "torch.load" and options.get("weights_only") != "True" else []
            found += [called] if options.get("allow_pickle") not in (None, "False") else []
            found += ["shell"] if options.get("shell") not in (None, "False") else []
            found += ["trust_remote_code"] if "trust_remote_code" in options else []
    return found


def test_nothing_in_the_source_executes_data() -> None:
    assert {path.name: found for path in SOURCES if (found := findings(path.read_text(encoding="utf-8")))} == {}


DANGEROUS = """import pickle
from pickle import load
import dill
eval(x)
exec(x)
yaml.load(x)
torch.load(x)
torch.load(x, weights_only=False)
np.load(x, allow_pickle=True)
subprocess.run(x, shell=True)"""
HARMLESS = "torch.load(x, weights_only=True); np.load(x); model.eval(); yaml.safe_load(x)"


@pytest.mark.parametrize("code", DANGEROUS.splitlines())
def test_the_search_finds_what_it_looks_for(code: str) -> None:
    assert findings(code) and not findings(
        "torch.load(x, weights_only=True); np.load(x); model.eval(); yaml.safe_load(x)"
    )


class Bomb:
    """What a pickle can do: unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_bomb_goes_off_where_pickles_are_opened(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "hit")))
    assert (tmp_path / "hit").exists()


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "diffusion"
    untrained().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.safetensors.index.json"])
def test_a_pickle_in_a_model_folder_is_not_opened(generator: Path, tmp_path: Path, name: str) -> None:
    """Neither in the place of a file, nor beside it under any name that some library would look for."""
    folder, hit = tmp_path / "diffusion", tmp_path / "hit"
    shutil.copytree(generator, folder)
    torch.save({"weight": Bomb(hit)}, tmp_path / "bomb")
    beside = ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt", "last.ckpt", "optimizer.pkl", "x.npy")
    for part in (folder, *folder.iterdir()):
        for other in beside if part.is_dir() else ():
            shutil.copy(tmp_path / "bomb", part / other)
    assert StyleDiffusion.from_pretrained(folder).classes == untrained().classes and not hit.exists()
    for content in ((tmp_path / "bomb").read_bytes(), pickle.dumps(Bomb(hit))):
        shutil.rmtree(folder / "unet")
        shutil.copytree(generator / "unet", folder / "unet")
        (folder / "unet" / name).write_bytes(content)
        if name == "model.safetensors.index.json":
            StyleDiffusion.from_pretrained(folder)
        else:
            with pytest.raises(UserError, match=re.escape(str(folder / "unet"))):
                StyleDiffusion.from_pretrained(folder)
        assert not hit.exists()


def test_a_pickle_as_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path / "run", killed_at=3)
    last, hit = tmp_path / "run" / "training" / "last.ckpt", tmp_path / "hit"
    state = torch.load(last, weights_only=True)
    torch.save(state | {"bomb": Bomb(hit)}, last)
    with pytest.raises(UserError, match=re.escape(f"remove {last.parent}")):
        train(tmp_path / "run")
    last.write_bytes(pickle.dumps(Bomb(hit)))
    with pytest.raises(UserError, match=r"last\.ckpt"):
        train(tmp_path / "run")
    assert not hit.exists()
    shutil.rmtree(last.parent)
    train(tmp_path / "run")


def packed(path: Path, entry: str) -> None:
    """Pack the archive that torch wrote, with a gigabyte of zeros behind what is in the entry that ends like this."""
    with zipfile.ZipFile(path) as archive:
        found = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in found.items():
            archive.writestr(name, content + bytes(2**30 if name.endswith(entry) else 0))


@pytest.mark.parametrize("kind", ["tensors", "pairs", "checkpoint"])
def test_what_would_unpack_to_more_than_it_is_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "0.pt"
    if kind == "checkpoint":
        with pytest.raises(Killed):
            train(tmp_path / "run", killed_at=3)
        path = tmp_path / "run" / "training" / "last.ckpt"
    else:
        torch.save({"seeds": torch.arange(2)}, path)
        assert torch.equal(read_tensors(path)["seeds"], torch.arange(2))
    packed(path, "data.pkl")
    assert path.stat().st_size < 2**24
    read = {"tensors": lambda: read_tensors(path), "pairs": lambda: read_pairs([path])}
    with limits(), pytest.raises((UserError, ValueError), match="would unpack to"):
        read.get(kind, lambda: train(tmp_path / "run"))()


def test_tensors_that_are_larger_than_their_file_are_refused(tmp_path: Path) -> None:
    """A number that stands for a million million of them."""
    pairs = {"seeds": 0, "z": 0, "layout": 0, "style": 0}
    torch.save({name: torch.zeros(()).expand(2**40, 1) for name in pairs}, tmp_path / "0.pt")
    with limits(), pytest.raises(UserError, match=r"0\.pt.* of 4 bytes"):
        read_pairs([tmp_path / "0.pt"])


BESIDE = ("diffusion_pytorch_model.bin", "pytorch_model.bin", "open_clip_pytorch_model.bin", "model.pth", "x.pth.tar")
"""Pickles that diffusers and timm open in a folder without safetensors."""


@pytest.mark.parametrize("kind", ["diffusers", "style", "kid", "segmenter"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_in_a_folder_from_elsewhere_is_not_opened(
    tmp_path: Path, kind: str, zipped: bool, monkeypatch: pytest.MonkeyPatch, no_sockets: list[Any]
) -> None:
    """Whatever the library would do of its own accord: even with its safe reader nothing but safetensors is read."""
    folder, hit = tmp_path / "theirs", tmp_path / "hit"
    if kind == "diffusers":
        FirstStage.new([16, 16], latent_channels=4, space_to_depth=1).kl.save_pretrained(folder)
    else:
        timm.models.save_for_hf(timm.create_model("test_resnet", num_classes=0), folder, safe_serialization=True)
    read: dict[str, Callable[[], Any]] = {
        "diffusers": lambda: FirstStage.from_diffusers(str(folder)),
        "style": lambda: timm_backbone("test_resnet", str(folder)),
        "kid": lambda: kid_encoder(str(folder)),
        "segmenter": lambda: Segmenter(classes=["a"], encoder="tu-test_resnet").load_encoder(folder),
    }
    monkeypatch.setattr(torch, "load", lambda file, **_: pickle.loads(Path(file).read_bytes()))  # the worst reader
    for name in BESIDE:
        if zipped:
            torch.save({"weight": Bomb(hit)}, folder / name)
        else:
            (folder / name).write_bytes(pickle.dumps(Bomb(hit)))
    read[kind]()
    if kind == "diffusers":
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": {"encoder.conv_in.weight": "diffusion_pytorch_model.bin"}})
        )
        with pytest.raises(UserError, match="in parts"):
            read[kind]()
    next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"safetensors"):
        read[kind]()
    assert not hit.exists() and no_sockets == []


@pytest.mark.parametrize("key", ["_target_", "class_path", "__class__", "weights", "pretrained", "_class_name"])
def test_a_config_names_no_classes_and_no_weights(
    generator: Path, tmp_path: Path, key: str, no_sockets: list[Any]
) -> None:
    folder = Path(shutil.copytree(generator / "style_encoder", tmp_path / "model"))
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {key: "os.system"})
    with pytest.raises(UserError, match=r"model"):
        StyleExtractor.from_pretrained(folder)
    write_json(folder / "config.json", config | {"class": "os.system"})
    with pytest.raises(UserError, match="holds a os"):
        StyleExtractor.from_pretrained(folder)
    assert no_sockets == []


@pytest.mark.parametrize("name", ["hf-hub:evil/model", "hf_hub:evil/model", "local-dir:/x", "timm/evil", f"{UP}x"])
def test_names_of_networks_fetch_nothing(generator: Path, tmp_path: Path, name: str, no_sockets: list[Any]) -> None:
    folder = Path(shutil.copytree(generator / "style_encoder", tmp_path / "model"))
    write_json(folder / "config.json", read_json(folder / "config.json") | {"encoder": name})
    with pytest.raises(UserError, match="no name of timm"):
        StyleExtractor.from_pretrained(folder)
    for encoder in (name, f"tu-{name}"):
        with pytest.raises(UserError, match="no encoder's name"):
            Segmenter(classes=["a", "b"], encoder=encoder)
    assert no_sockets == []


def test_weights_of_another_size_are_refused_before_they_take_memory(generator: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(generator / "unet", tmp_path / "unet"))
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"channels": 2**15})  # a hundred gigabytes, if it were made
    with pytest.raises(UserError, match="in the network"):
        type(untrained().unet).from_pretrained(folder)
    write_json(folder / "config.json", config | {"multipliers": [1] * 100_000})
    with pytest.raises(UserError, match="too large"):
        type(untrained().unet).from_pretrained(folder)
    shutil.copy(generator / "unet" / "config.json", folder)
    save_file(load_file(folder / "model.safetensors") | {"more": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="more"):
        type(untrained().unet).from_pretrained(folder)


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['x']", "a: !!python/name:os.system", "cohort: !include passwords"]
)
def test_yaml_tags_make_no_objects(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=r"c\.yaml: not valid YAML"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize("theirs", [False, True])
def test_a_network_of_a_thousand_layers_is_refused_at_once(generator: Path, tmp_path: Path, theirs: bool) -> None:
    """Each takes time to make, whatever its size; of fewer, diffusers would make up those that the file lacks."""
    folder = tmp_path / "deep"
    if theirs:
        FirstStage.new([16, 16], latent_channels=4, space_to_depth=1).kl.save_pretrained(folder)
    else:
        shutil.copytree(generator / "autoencoder", folder)
    read: Callable[[str], Any] = FirstStage.from_diffusers if theirs else FirstStage.from_pretrained
    config = read_json(folder / "config.json")
    for layers, message in ((1000, "too large"), (3, "resnets|conv")):
        (config if theirs else config["kl"])["layers_per_block"] = layers
        write_json(folder / "config.json", config)
        with pytest.raises(UserError, match=message):
            read(str(folder))
