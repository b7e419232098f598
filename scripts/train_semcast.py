#!/usr/bin/env python3
"""Train a model of semantic broadcast.

    python scripts/train_semcast.py --out payloads/models/semcast-fusion
    python scripts/train_semcast.py --out payloads/models/semcast-time-division --scheme time_division

Photographs come from the folder that ``scripts/semcast_images.py photographs`` fills. Training can be stopped and
started again: it goes on from the last checkpoint in ``--work``, and what follows does not depend on where it was cut.
A GPU is used where there is one; a processor computes in bfloat16. At the end the model's folder holds the weights
(safetensors, fp16), the settings, and a card with what the model reaches on the held-out sets.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from semcast_card import evaluated, write_model
from semcast_data import Links, Pictures, draw_links, load_pictures, read_sets

from payloads.semcast.channels import Gains, receive
from payloads.semcast.klt import Klt
from payloads.semcast.network import Broadcast
from payloads.semcast.seeds import generator, seed_of
from payloads.semcast.settings import BACKBONES, SCHEMES, NetworkSettings, from_config

WARM_UP_STEPS = 100
WEIGHT_DECAY = 0.01
AVERAGED = 0.998
LEAST_ERROR = 1e-4
#: Each step has the first, and the others in turn: side of the crops, and how many pairs of them.
EACH_STEP = ((32, 32),)
IN_TURN = ((128, 4), (128, 4), (128, 4), (64, 12), (96, 6))


def main() -> None:
    """Parse the command line, train, measure and write the model."""
    options = parsed()
    torch.set_num_threads(options.threads)
    settings = settings_of(options)
    pictures = load_pictures(options.pictures, options.work / "pictures.safetensors")
    klt = pictures.klt(generator(0, "klt"))
    held_out = read_sets(options.held_out)
    run = Run(settings, klt, options)
    seconds = run.train(pictures, held_out)
    network = run.average()
    facts = {
        "steps": options.steps,
        "seed": options.seed,
        "loss": options.loss,
        "seconds": round(seconds),
        "processor_seconds": round(run.busy_seconds),
        "threads": options.threads,
        "device": run.device,
        "pictures": len(pictures.scales),
        "peak_learning_rate": options.learning_rate,
    }
    write_model(options.out, network, facts, held_out)
    run.checkpoint.unlink(missing_ok=True)


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument(
        "--work", type=Path, default=Path(".cache/semcast"), help="checkpoints, scaled pictures"
    )
    parser.add_argument("--pictures", type=Path, default=Path(".cache/semcast/photographs"))
    parser.add_argument("--held-out", type=Path, default=Path("payloads/images"))
    parser.add_argument("--scheme", choices=SCHEMES, default="fusion")
    parser.add_argument("--backbone", choices=BACKBONES, default="convolution")
    parser.add_argument("--users", type=int, default=2)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--no-csi", action="store_true", help="SNRs do not enter the networks")
    parser.add_argument(
        "--no-similarity", action="store_true", help="the fusion is not told how alike users are"
    )
    parser.add_argument("--loss", choices=("log", "square"), default="log", help="a user's part of the loss")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def settings_of(options: argparse.Namespace) -> NetworkSettings:
    """Return the network that the options ask for."""
    return from_config(
        {
            "users": options.users,
            "slots": 64,
            "width": options.width,
            "blocks": options.blocks,
            "backbone": options.backbone,
            "scheme": options.scheme,
            "sees_csi": not options.no_csi,
            "by_similarity": not options.no_similarity,
        }
    )


class Run:
    """One training: the network, the average of its weights and the optimiser, kept in a checkpoint."""

    def __init__(self, settings: NetworkSettings, klt: Klt, options: argparse.Namespace) -> None:
        self.options = options
        self.settings = settings
        self.klt = klt
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.checkpoint: Path = options.work / f"{options.out.name}.checkpoint"
        torch.manual_seed(seed_of(options.seed, "weights"))
        self.network = Broadcast(settings, klt).to(self.device, memory_format=torch.channels_last)
        for trunk in (self.network.encoder, self.network.decoder, self.network.fusion):
            if trunk is not None:
                trunk.low_precision = True
        weights = list(self.network.parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [w for w in weights if w.ndim >= 2], "weight_decay": WEIGHT_DECAY},
                {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
            fused=True,
        )
        self.averages = [w.detach().clone() for w in weights]
        self.done, self.seconds, self.busy_seconds = 0, 0.0, 0.0

    def average(self) -> Broadcast:
        """Return a network with the averaged weights, rounded as they are kept, in full precision."""
        network = Broadcast(self.settings, self.klt)
        with torch.no_grad():
            for weight, average in zip(network.parameters(), self.averages, strict=True):
                weight.copy_(average.half())
        return network.eval()

    def train(self, pictures: Pictures, held_out: dict[str, torch.Tensor]) -> float:
        """Train to the last step, going on from a checkpoint where there is one; return the seconds."""
        self._restore()
        steps = self.options.steps
        last_s, busy_s = time.monotonic(), time.process_time()
        for step in range(self.done, steps):
            for group in self.optimizer.param_groups:
                group["lr"] = self.options.learning_rate * learning_rate(step, steps)
            loss = self._step(pictures, step)
            self.done = step + 1
            if self.done % 100 == 0 or self.done == steps:
                now_s, spent_s = time.monotonic(), time.process_time()
                self.seconds += now_s - last_s
                self.busy_seconds += spent_s - busy_s
                print(
                    f"step {self.done}/{steps}  loss {loss:.4f}  {(now_s - last_s) * 10:.0f} ms a step"
                    f"  ({(spent_s - busy_s) * 10:.0f} ms of the processor)",
                    flush=True,
                )
                last_s, busy_s = now_s, spent_s
            if self.done % 500 == 0 or self.done == steps:
                self._save()
                print(f"  held out: {evaluated(self.average(), held_out, briefly=True)}", flush=True)
                last_s, busy_s = time.monotonic(), time.process_time()
        return self.seconds

    def _step(self, pictures: Pictures, step: int) -> float:
        draw = generator(self.options.seed, "step", step)
        total = 0.0
        for side, pairs in (*EACH_STEP, IN_TURN[step % len(IN_TURN)]):
            slots = 64 if float(torch.rand(1, generator=draw)) < 0.6 else 32
            images = pictures.crops(pairs * self.settings.users, side, draw)
            links = draw_links(pairs, self.settings.users, slots, draw)
            loss = self._loss(images.unflatten(0, (pairs, -1)), links, draw)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        kept = min(AVERAGED, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, [w.detach() for w in self.network.parameters()], 1 - kept)
        return total

    def _loss(self, images: torch.Tensor, links: Links, draw: torch.Generator) -> torch.Tensor:
        """Return the sum of the users' distortions, each weighted by its share, of images (B, U, 3, H, W)."""
        where, conditions = self.device, links.conditions
        believed = conditions._replace(snr_db=conditions.snr_db.to(where), shares=conditions.shares.to(where))
        images = images.to(where)
        frame = self.network.encode(images, believed)
        grid = (images.shape[3] // 8, images.shape[4] // 8)
        total = torch.zeros((), device=where)
        for user, gains in enumerate(links.gains):
            symbols = self._through(frame.symbols, links.snr_db[:, user], gains, draw)
            decoded = self.network.decode(symbols, frame.scale, user, believed, grid)
            error = (decoded - images[:, user]).square().mean(dim=(1, 2, 3))
            if self.options.loss == "log":
                error = (error + LEAST_ERROR).log()
            total = total + (believed.shares[:, user] * error).mean()
        return total

    def _through(
        self, symbols: torch.Tensor, snr_db: torch.Tensor, gains: Gains, draw: torch.Generator
    ) -> torch.Tensor:
        # Noise is drawn where the generator is, on the processor.
        if self.device == "cpu":
            return receive(symbols, snr_db, gains, draw).symbols
        silent = receive(torch.zeros(symbols.shape), snr_db, gains, draw).symbols.to(self.device)
        ratio = complex_ratio(gains).to(self.device)
        return silent + torch.view_as_real(torch.view_as_complex(symbols.contiguous()) * ratio)

    def _save(self) -> None:
        fresh = self.checkpoint.with_suffix(".new")
        fresh.parent.mkdir(parents=True, exist_ok=True)
        torch.save(
            {
                "options": self._identity(),
                "network": self.network.state_dict(),
                "averages": self.averages,
                "optimizer": self.optimizer.state_dict(),
                "done": self.done,
                "seconds": self.seconds,
                "busy_seconds": self.busy_seconds,
            },
            fresh,
        )
        fresh.replace(self.checkpoint)

    def _restore(self) -> None:
        if not self.checkpoint.exists():
            return
        kept = torch.load(self.checkpoint, weights_only=True, map_location=self.device)
        if kept["options"] != self._identity():
            raise SystemExit(f"{self.checkpoint}: of a training with other options; remove it to begin anew")
        self.network.load_state_dict(kept["network"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.averages = kept["averages"]
        self.done, self.seconds, self.busy_seconds = kept["done"], kept["seconds"], kept["busy_seconds"]
        print(f"going on after step {self.done}", flush=True)

    def _identity(self) -> str:
        options = self.options
        return repr((self.settings, options.seed, options.loss, options.steps, options.learning_rate))


def complex_ratio(gains: Gains) -> torch.Tensor:
    """Return what equalised symbols are multiplied with (B, 1): the true gain over the believed one."""
    true, believed = torch.view_as_complex(gains.true), torch.view_as_complex(gains.believed)
    power = gains.believed.square().sum(dim=1).clamp_min(1e-4)
    return (true * believed.conj() / power).view(-1, 1)


def learning_rate(step: int, steps: int) -> float:
    """Warm up linearly, then fall as a cosine to 1 % of the peak."""
    if step < WARM_UP_STEPS:
        return (step + 1) / WARM_UP_STEPS
    progress = (step - WARM_UP_STEPS) / max(1, steps - WARM_UP_STEPS)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


if __name__ == "__main__":
    main()
