"""An encoder as a folder in the form of the Hugging Face Hub: weights, config.json and a model card."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torchvision
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from twoview.data.image.pixels import Pixels
from twoview.encoder.frozen import Frozen, digest
from twoview.errors import UserError
from twoview.run.atomic import whole
from twoview.run.export import Function, architecture, without_classifier
from twoview.run.folder import CHECKPOINT, CURVES, ENCODER, PROBE, SUMMARY, read_json
from twoview.run.identity import relevant

WEIGHTS = "model.safetensors"
ESCAPED = r"\|"  # within a cell of a table


def write_huggingface(encoder: Frozen, folder: Path, checkpoint: Path, student: bool) -> Function:
    """Weights under timm's or torchvision's keys, `config.json` in timm's form, and `README.md`, the model card.

    `checkpoint`: the file that the encoder is from, beside which the run's numbers lie; those of its end count for the
    `student` alone. Returns what the network loaded from the folder makes of images in [0, 1].
    """
    name, library = _origin(encoder)
    weights = {key: value.cpu().contiguous() for key, value in encoder.encoder.state_dict().items()}
    with whole(folder / WEIGHTS) as part:
        save_file(weights, part, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(encoder, name), indent=2) + "\n")
    curves = checkpoint.with_name(CURVES)
    card = _card(encoder, name, library, _numbers(encoder, checkpoint, student))
    if curves.is_file():
        shutil.copyfile(curves, folder / CURVES)
        card += f"\n## Curves\n\n![Loss and scores over the training]({CURVES})\n"
    (folder / "README.md").write_text(card)
    network = _from_timm(encoder, folder) if library == "timm" else _from_torchvision(encoder, folder)
    network.dim = encoder.dim  # type: ignore[assignment]
    return Frozen(network, encoder.preprocess).eval()


def huggingface_code(encoder: Frozen, place: str) -> list[str]:
    """The lines that load the network from a folder."""
    _, library = _origin(encoder)
    if library == "torchvision":
        return [
            "import torchvision",
            "from safetensors.torch import load_file",
            "from torch import nn",
            *(line.partition("  #")[0].strip() for line in without_classifier(*architecture(encoder))),
            f"model.load_state_dict(load_file({f'{place}/{WEIGHTS}'!r}))",
            "model.eval()",
        ]
    changed: Mapping[str, Mapping[str, Any]] = encoder.encoder.changed  # type: ignore[assignment]
    stem = [
        f"vars(model.get_submodule({layer!r})).update({', '.join(f'{key}={value}' for key, value in values.items())})"
        for layer, values in changed.items()
    ]
    return ["import timm", f"model = timm.create_model({f'local-dir:{place}'!r}, pretrained=True).eval()", *stem]


def check_hub(repo: str) -> None:
    """UserError unless a folder can be pushed to `repo`, <owner>/<name>: by its name, the extra `hub`, and a token."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UserError(f"push={repo} is no repository of the Hub: <owner>/<name>")
    if _hub().get_token() is None:
        raise UserError("push=... needs a token of the Hub: hf auth login, or HF_TOKEN in the environment")


def push(folder: Path, repo: str) -> str:
    """Puts the folder into the repository `repo` of the Hugging Face Hub, made where there is none yet (private ones
    stay private), and returns its address. UserError if the Hub refuses, which leaves the folder as it is.
    """
    hub = _hub()
    try:
        hub.create_repo(repo, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="Encoder trained with twoview")
    except (OSError, ValueError) as error:  # of the network, of the Hub; of names that it refuses
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the Hub did not take push={repo}: {reason}; {folder} is written and can be pushed again"
        ) from error
    return f"https://huggingface.co/{repo}"


def _hub() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise UserError("push=... needs huggingface_hub: pip install 'twoview[hub]'") from None
    return huggingface_hub


def _origin(encoder: Frozen) -> tuple[str, str]:
    """The network's name, and the library that has it. UserError where none has."""
    about = encoder.config["encoder"]
    if about["_target_"] != "twoview.encoder.timm.timm_encoder":
        return architecture(encoder)[0], "torchvision"
    if not isinstance(encoder.preprocess, Pixels):
        raise UserError("format=huggingface is for images that are normalised by mean and std: use safetensors")
    if about.get("pool") == "both":
        raise UserError("format=huggingface: timm has no pooling of both token and patches; use safetensors or onnx")
    return str(about["name"]), "timm"


def _config(encoder: Frozen, name: str) -> dict[str, Any]:
    pixels, shape = encoder.preprocess, encoder.shape
    assert isinstance(pixels, Pixels)
    return {
        "architecture": name.partition(".")[0],
        "num_classes": 0,
        "num_features": encoder.dim,
        "model_args": getattr(encoder.encoder, "arguments", {}),
        "pretrained_cfg": {
            "input_size": shape,
            "mean": pixels.mean.tolist(),
            "std": pixels.std.tolist(),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "num_classes": 0,
        },
    }


def _from_timm(encoder: Frozen, folder: Path) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    changed: Mapping[str, Mapping[str, Any]] = encoder.encoder.changed  # type: ignore[assignment]
    for layer, values in changed.items():
        vars(network.get_submodule(layer)).update(values)
    return network


def _from_torchvision(encoder: Frozen, folder: Path) -> nn.Module:
    name, stem = architecture(encoder)
    network: Any = getattr(torchvision.models, name)()
    if stem == "cifar":
        network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    network.fc = nn.Identity()
    network.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    return network


def _numbers(encoder: Frozen, checkpoint: Path, student: bool) -> list[tuple[str, str, str]]:
    """What was measured of this very encoder: name, value, protocol."""
    found = []
    probe, summary = read_json(checkpoint.with_name(PROBE)), read_json(checkpoint.with_name(SUMMARY))
    if probe.get("encoder_digest") == digest(encoder):
        low, high = probe["interval"]
        found.append(
            (
                "linear top-1",
                f"{probe['top1']:.2%} [{low:.2%}, {high:.2%}]",
                f"{probe['protocol_text']}; {probe['test_size']:,} test images of {probe['data']}, 95 % interval",
            )
        )
    knn = summary.get("knn")
    if knn and student and checkpoint.name in (CHECKPOINT, ENCODER) and knn.get("final") is not None:
        found.append(
            (
                "kNN top-1",
                f"{knn['final']:.2%}",
                f"after the last epoch: k = {knn['k']}, temperature {knn['temperature']}, {knn['bank']:,} training "
                f"images vote on {knn['test']:,} test images",
            )
        )
    return found


def _card(encoder: Frozen, name: str, library: str, numbers: list[tuple[str, str, str]]) -> str:
    run, config = encoder.config, _config(encoder, name)["pretrained_cfg"]
    method = str(run.get("model", {}).get("_target_", "")).rpartition(".")[2]
    shape = " x ".join(map(str, config["input_size"]))
    recipe = {key: value for key, value in relevant(run).items() if not key.endswith("_partial_")}
    if "encoder.weights" in recipe:  # a place on the machine says nothing elsewhere
        recipe["encoder.weights"] = Path(recipe["encoder.weights"]).name
    table = [f"| {' | '.join(cell.replace('|', ESCAPED) for cell in row)} |" for row in numbers]
    head = {"library_name": library, "pipeline_tag": "image-feature-extraction", "tags": ["self-supervised-learning"]}
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {name}, trained by {method}",
        f"Features h of {encoder.dim} dimensions of images {shape}. It was trained with twoview; the run is "
        f"{encoder.identity.get('run_hash', 'not known')}.",
        "## Use\nIn this folder:",
        "\n".join(["```python", *huggingface_code(encoder, "."), "```"]),
        f"Images (B, C, H, W) in [0, 1] are normalised by mean {_short(config['mean'])} and std "
        f"{_short(config['std'])}; the output is h (B, {encoder.dim}).",
        "## Numbers",
        "\n".join(["| | | protocol |", "|---|---|---|", *table]) if table else "None were measured of this encoder.",
        "## Recipe",
        f"```yaml\n{yaml.safe_dump(recipe, sort_keys=False)}```",
    ]
    return "\n\n".join(parts) + "\n"


def _short(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"
