"""Train the embedded model from a seed: `python -m gprune.scenes.train --out runs/scenes`.

Three phases. (1) The vision tower alone learns what every patch shows. (2) Projector and language model learn captions
and answers, packed after each image, with the tower frozen. (3) Everything learns together.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from .. import host
from .data import IGNORED, Batch, SceneBatches
from .model import PATCH, TILE, build_model, build_processor, build_tokenizer
from .scene import BAR_CLASS
from .vocabulary import BACKGROUNDS, CHARACTERS, COLORS


@dataclass(frozen=True)
class Recipe:
    """What a run depends on.

    The learning rate of a phase warms up and stays; before the tower is frozen, and at the end, it decays.
    """

    seed: int = 0
    batch_size: int = 16
    tower_steps: int = 1500
    align_steps: int = 500
    joint_steps: int = 1800
    tower_rate: float = 2e-3
    align_rate: float = 2e-3
    joint_rate: float = 2e-3
    warmup_steps: int = 100
    decay_share: float = 0.35
    character_weight: float = 2.0
    page_every: int = 2
    dense_share: float = 0.1

    @property
    def total(self) -> int:
        """Steps of all phases."""
        return self.tower_steps + self.align_steps + self.joint_steps

    def phase(self, step: int) -> tuple[str, float, int]:
        """Name of the phase that a step belongs to, its learning rate, and the step that ends the phase."""
        first = 0
        for name, steps, rate in (
            ("tower", self.tower_steps, self.tower_rate),
            ("align", self.align_steps, self.align_rate),
            ("joint", self.joint_steps, self.joint_rate),
        ):
            if step < first + steps:
                done = step - first
                left = 1.0 if name == "align" else (steps - done) / (self.decay_share * steps)
                rate *= min(1.0, (done + 1) / self.warmup_steps) * min(1.0, 0.03 + 0.97 * left)
                return name, rate, first + steps
            first += steps
        raise IndexError(f"step {step} is past the last step of the recipe, {first - 1}")


class DenseHeads(nn.Module):
    """Linear read-outs of the vision tower's patches: what each shows, and its place in the tile."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shape = nn.Linear(width, BAR_CLASS + 1)
        self.color = nn.Linear(width, len(COLORS) + 1)
        self.character = nn.Linear(width, len(CHARACTERS) + 1)
        self.background = nn.Linear(width, len(BACKGROUNDS))
        self.place = nn.Linear(width, (TILE // PATCH) ** 2)

    def forward(self, hidden: Tensor, batch: Batch, character_weight: float) -> tuple[Tensor, dict[str, float]]:
        """Loss and accuracy on labelled patches. `hidden` is [B * T, 1 + P * P, width], [CLS] first."""
        hidden = hidden[:, 1:].flatten(0, 1)
        targets = batch.patches.to(hidden.device).flatten(0, -2)
        loss = hidden.new_zeros((), dtype=torch.float32)
        accuracy = {}
        for channel, name in enumerate(("shape", "color", "character")):
            logits = getattr(self, name)(hidden).float()
            weight = torch.ones(logits.shape[-1], device=hidden.device)
            weight[0] = 0.2  # most patches show nothing
            share = character_weight if name == "character" else 1.0
            loss = loss + share * cross_entropy(logits, targets[:, channel], weight=weight)
            shown = targets[:, channel] > 0
            accuracy[name] = float((logits.argmax(-1) == targets[:, channel])[shown].float().mean())
        behind = batch.background.to(hidden.device).repeat_interleave(len(hidden) // len(batch.background))
        loss = loss + 0.3 * cross_entropy(self.background(hidden).float(), behind)
        places = torch.arange(self.place.out_features, device=hidden.device)
        places = places.repeat(len(hidden) // len(places))
        loss = loss + cross_entropy(self.place(hidden).float(), places)
        return loss, accuracy


class Trainer:
    """The state of a run, and one step of it."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device, self.step = recipe, device, 0
        model: Any = build_model()
        self.model = model.to(device)
        self.tower = self.model.model.vision_tower
        self.heads = DenseHeads(self.model.config.vision_config.hidden_size).to(device)
        self.characters = _character_mask(self.model.config.text_config.vocab_size).to(device)
        self.phase = ""

    def _enter(self, phase: str) -> None:
        self.phase = phase
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(phase == "joint" or ("vision_tower" in name) == (phase == "tower"))
        self.optimizers = [
            torch.optim.Muon(self._groups(matrices=True), lr=0.0, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(self._groups(matrices=False), lr=0.0, betas=(0.9, 0.98), weight_decay=0.02),
        ]

    def _groups(self, matrices: bool) -> list[dict[str, Any]]:
        """What is trained, and at which share of the rate: the hidden layers' matrices, or everything else."""
        trained: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            hidden = ".layers." in name and parameter.ndim == 2
            if parameter.requires_grad and hidden == matrices:
                share = 0.4 if self.phase == "joint" and "vision_tower" in name else 1.0
                trained.setdefault(share, []).append(parameter)
        if self.phase != "align" and not matrices:
            trained.setdefault(1.0, []).extend(self.heads.parameters())
        return [{"params": parameters, "share": share} for share, parameters in trained.items()]

    def train_step(self, batch: Batch) -> float:
        """One step of the optimizer; returns the loss."""
        phase, rate, _ = self.recipe.phase(self.step)
        if phase != self.phase:
            self._enter(phase)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group in groups:
            group["lr"] = rate * group["share"]
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self._dense(batch)[0] if phase == "tower" else self._answers(batch)[0]
        loss.backward()
        nn.utils.clip_grad_norm_([parameter for group in groups for parameter in group["params"]], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return float(loss.detach())

    def _dense(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        pixels = batch.pixel_values.to(self.device).flatten(0, 1)
        hidden = self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
        return self.heads(hidden, batch, self.recipe.character_weight)

    def _answers(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images = host.encode(
            self.model,
            "image",
            pixel_values=batch.pixel_values.to(self.device),
            image_sizes=batch.image_sizes.to(self.device),
            output_hidden_states=True,
        )
        # Right padding and no mask: causal attention takes its fast path, and padding cannot matter to what it follows.
        output = self.model(
            input_ids=batch.input_ids.to(self.device), use_cache=False, **{host.ENCODED: {"image": images}}
        )
        logits = output.logits[:, :-1].float()
        targets = batch.labels[:, 1:].to(self.device)
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        weight = torch.where(self.characters[targets.clamp_min(0)], self.recipe.character_weight, 1.0)
        weight = (weight * (targets != IGNORED)).flatten()
        answers = (loss * weight).sum() / weight.sum()
        if self.phase == "joint":
            dense, _ = self.heads(images.hidden_states[-1], batch, self.recipe.character_weight)
            answers = answers + self.recipe.dense_share * dense
        return answers, logits.argmax(-1)

    @torch.no_grad()
    def validate(self, batches: list[Batch]) -> dict[str, float]:
        """Exact match per category (phase 1: accuracy per patch), by teacher forcing.

        An answer is right when every token is the most likely one given the right answer so far, which is when greedy
        decoding gives it.
        """
        right: dict[str, list[float]] = defaultdict(list)
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16):
                if self.phase == "tower":
                    for name, share in self._dense(batch)[1].items():
                        right[name].append(share)
                    continue
                guesses = self._answers(batch)[1].cpu()
            for row, first, last, category in batch.asked:
                same = guesses[row, first - 1 : last - 1] == batch.labels[row, first:last]
                right[category].append(float(same.all()))
        return {name: sum(values) / len(values) for name, values in sorted(right.items())}

    def save(self, path: Path) -> None:
        """Write all that a run needs to go on."""
        state = {
            "step": self.step,
            "phase": self.phase,
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def resume(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self._enter(state["phase"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]


def _character_mask(size: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[build_tokenizer().convert_tokens_to_ids([c.lower() for c in CHARACTERS])] = True
    return mask


def export(model: Any, folder: Path) -> None:
    """Save model and processor as a checkpoint in half precision that loads in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    build_processor().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def train(
    recipe: Recipe, out: Path, *, workers: int = 1, validate_every: int = 100, validation_batches: int = 12
) -> None:
    """Train into a folder, or go on where a run in that folder was interrupted.

    Writes `log.jsonl` (a line per validation), `state.pt` (to go on from) and at the end `checkpoint/`.
    """
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(recipe, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    state = out / "state.pt"
    if state.exists():
        trainer.resume(state)
    validation = SceneBatches("validation", recipe.batch_size, 0, validation_batches)
    held_out = [validation[i] for i in range(len(validation))]
    data = SceneBatches("train", recipe.batch_size, trainer.step, recipe.total, recipe.page_every)
    loader = DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None)
    started, losses = time.perf_counter(), []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=recipe.total, completed=trainer.step)
        for batch in loader:
            losses.append(trainer.train_step(batch))
            progress.update(task, completed=trainer.step, description=f"{trainer.phase} {losses[-1]:.3f}")
            if trainer.step % validate_every and trainer.step != recipe.phase(trainer.step - 1)[2]:
                continue
            accuracy = trainer.validate(held_out)
            row = {
                "step": trainer.step,
                "phase": trainer.phase,
                "loss": round(math.fsum(losses) / len(losses), 4),
                "seconds": round(time.perf_counter() - started),
                "validation": {name: round(value, 3) for name, value in accuracy.items()},
            }
            progress.console.print_json(json.dumps(row), indent=None)
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            losses.clear()
            trainer.save(state)
    export(trainer.model, out / "checkpoint")


def command(
    out: Annotated[Path, typer.Option(help="Folder for the log, the state to resume from, and the checkpoint.")],
    tower_steps: Annotated[int, typer.Option(help="Steps of phase 1.")] = Recipe.tower_steps,
    align_steps: Annotated[int, typer.Option(help="Steps of phase 2.")] = Recipe.align_steps,
    joint_steps: Annotated[int, typer.Option(help="Steps of phase 3.")] = Recipe.joint_steps,
    batch_size: Annotated[int, typer.Option(help="Images in a step.")] = Recipe.batch_size,
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = Recipe.seed,
    workers: Annotated[int, typer.Option(help="Processes that draw scenes.")] = 1,
    validate_every: Annotated[int, typer.Option(help="Steps between validations; the state is saved then too.")] = 100,
) -> None:
    """Train the embedded model; call again with the same folder to go on after an interruption."""
    recipe = Recipe(seed, batch_size, tower_steps, align_steps, joint_steps)
    train(recipe, out, workers=workers, validate_every=validate_every)
    typer.echo(f"saved {out / 'checkpoint'}")


if __name__ == "__main__":
    typer.run(command)
