"""A run in words before its first step, and in numbers after its last."""

from typing import Any

from twoview.cli.program import near
from twoview.data.demand import shape_words
from twoview.report.words import clock
from twoview.run.provenance import commit, machine, versions
from twoview.run.saving import Interrupted
from twoview.train.assemble import Assembly


def brief(run: Assembly) -> list[str]:
    """What a run is going to do, in a few lines."""
    config, model, data, trainer = run.config, run.model, run.data, run.trainer
    encoder = config["encoder"].get("name") or config["encoder"]["_target_"].rpartition(".")[2]
    parameters = sum(p.numel() for p in model.encoder.parameters()) / 1e6
    recipe, batch = model.recipe, config["batch_size"]
    share = (
        f" ({batch // trainer.world_size} on each of {trainer.world_size} devices)" if trainer.world_size > 1 else ""
    )
    share += f", the encoder in {model.run.pieces} pieces" if model.run.pieces > 1 else ""
    steps, outlook = data.batches_per_epoch * config["epochs"], model.outlook()
    rule = {"linear": f"x {batch}/256", "sqrt": f"x sqrt({batch}/256)", "none": "as it is"}[recipe.lr_scaling]
    schedule = f"lr {recipe.lr(batch):.4g} = {recipe.lr_per_256:g} {rule} ({recipe.lr_scaling})"
    return [
        f"{type(model).__name__} with {encoder} ({parameters:.2f} M parameters, h of {model.encoder.dim}) "
        f"on {data.train.name} ({len(data.train):,} samples of {shape_words(data.train.shape)})",
        f"batch {batch}{share} on {trainer.accelerator.__class__.__name__.removesuffix('Accelerator')}, "
        f"{trainer.precision}; {schedule}, warm-up {recipe.warmup_epochs:g} epochs, cosine",
        "; ".join(filter(None, (f"{steps:,} steps in {config['epochs']} epochs of {data.batches_per_epoch}", outlook))),
        f"everything goes to {near(run.folder)}",
    ]


def summarise(run: Assembly, stopped: Interrupted | None) -> dict[str, Any]:
    """The run in numbers, with what is needed to believe and to repeat them."""
    config, trainer, meter, knn = run.config, run.trainer, run.meter, run.knn
    return {
        "name": config["name"],
        "status": f"stopped: {stopped.reason}" if stopped else "finished",
        "epochs": trainer.global_step / max(1, trainer.num_training_batches),
        "steps": trainer.global_step,
        "samples": len(run.data.train),
        "loss": meter.latest.get("loss"),
        "chance_loss": meter.latest.get("chance_loss"),
        "numbers": {name: meter.latest[name] for name in meter.numbers if name in meter.latest},
        "knn": None
        if knn is None
        else {
            "final": knn.last,
            "best": knn.best,
            "best_epoch": knn.best_epoch,
            "k": knn.k,
            "temperature": knn.temperature,
            "bank": len(knn.train),
            "test": len(knn.test),
        },
        "training_seconds": round(meter.seconds, 2),
        "training_time": clock(meter.seconds),
        "evaluation_seconds": round(meter.evaluating, 2),
        "images_per_second": trainer.global_step * config["batch_size"] / meter.seconds if meter.seconds else None,
        "waiting": meter.waited / meter.seconds if meter.seconds else None,
        "seed": config["seed"],
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "identity": run.checkpoints.identity,
        "next": command_after(run),
    }


def command_after(run: Assembly) -> str:
    """The command that says most about the encoder, of what the data allow: a probe needs labels on both sides."""
    train = run.data.train
    labelled = run.knn is not None if run.config.get("knn") else train.labels is not None
    return "probe" if labelled else "explore" if train.draw is not None else "embed"
