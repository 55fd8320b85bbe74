"""What gradflow does on a GPU: whether its numbers are right there, and what they cost.

No line of gradflow has run on a GPU yet. This is one command for the first that can be had; it
takes at most 8 minutes there. Its parts run one after the other in processes of their own, each
with a time limit, and go on where one fails:

- the tests that need a GPU (`pytest -m cuda`);
- every sum against float64 on the CPU, taken by PyTorch's own reductions and by the Triton kernels;
- `gradflow bench` at 64 and 224 px, batch 50 and 256, fp32 and bf16, and with the Triton kernels;
- both networks on the photographs at 224 px by the original recipe, as many epochs as fit.

    python experiments/on_cuda.py --photographs FOLDER
    python experiments/on_cuda.py --quick               # on a CPU: that the command itself works

It prints one table and writes on-cuda.json into --out. By its times the default on CUDA is to be
chosen: until then that is PyTorch's reductions, and `GRADFLOW_TRITON=1` asks for the kernels.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from overhead import environment
from rich.console import Console
from rich.table import Table
from torch import Tensor
from trained import begun_in

from gradflow.files import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"
GRACE = 10  # seconds that a part has to stop by itself at its time limit
BENCHES_END = 330  # seconds after the start: what remains of 8 minutes is for the trainings
TRITON = {"with Triton": {"GRADFLOW_TRITON": "1"}, "": {}}
SMALL = ("--arch", "plain_18", "--rounds", "1", "--steps", "1")

Facts = dict[str, Any]


# -- parts -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A command, how long it may take, and what is to be learnt from what it prints."""

    name: str
    command: list[str]
    limit: float  # seconds
    learn: Callable[[str], Facts]
    environment: Mapping[str, str] = field(default_factory=dict)
    # A training is stopped at its limit, and what it did until then counts.
    counts_when_stopped: bool = False
    end: float = float("inf")  # seconds after the first part began


@dataclass(frozen=True)
class Outcome:
    """How a part ended: "done", or why not."""

    name: str
    state: str
    seconds: float
    facts: Facts


def run(part: Part, limit: float, logs: Path) -> Outcome:
    """Run a part to its end or for `limit` seconds; what it says goes to a file in `logs`."""
    if limit <= 0:
        return Outcome(part.name, "no time left", 0, {})
    log = logs / f"{part.name.replace(' ', '-').replace('/', '-')}.log"
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as messages, (log.with_suffix(".out")).open("w") as out:
        process = subprocess.Popen(
            part.command, cwd=ROOT, stdout=out, stderr=messages, start_new_session=True,
            env={**os.environ, **part.environment},
        )  # fmt: skip
        is_late = not _ended(process, limit)
        if is_late:
            os.killpg(process.pid, signal.SIGINT)
            if not _ended(process, GRACE):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    seconds = time.perf_counter() - start
    try:
        facts = part.learn(log.with_suffix(".out").read_text())
    except Exception as error:  # a part that failed printed something else, or nothing
        facts = {"error": f"{type(error).__name__}: {error}"}
    if is_late:
        state = "done" if part.counts_when_stopped else f"stopped after {limit:.0f} s"
    else:
        state = _state(process.returncode, log)
    return Outcome(part.name, state, seconds, facts)


def _ended(process: subprocess.Popen[bytes], limit: float) -> bool:
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        return False
    return True


def _state(code: int, log: Path) -> str:
    if code == 0:
        return "done"
    said = log.read_text().strip().splitlines()
    return f"failed with {code}: {said[-1][:100] if said else 'without a word'}"


def all_parts(options: argparse.Namespace) -> Iterator[Part]:
    """In order; together they may take 8 minutes."""
    tests = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider"]
    yield Part("tests", tests + (["--collect-only"] if options.quick else []), 110, last_line)
    ask = [sys.executable, str(Path(__file__).resolve()), "--compare"]
    ask += ["--quick"] if options.quick else []
    for name, chosen in (("PyTorch", "0"), ("Triton", "1")):
        # On a CPU the compiled kernel stands for Triton's.
        switch = {"GRADFLOW_TRITON": chosen, "GRADFLOW_KERNEL": chosen}
        yield Part(f"sums by {name}", ask, 40, last_json, switch)
    yield from _benches(options.quick)
    for arch in ("plain_34", "resnet_34"):
        yield _training(arch, options)


def _benches(quick: bool) -> Iterator[Part]:
    """The cheapest first: at 224 px the last may not come to their end."""
    if quick:
        yield _bench(8, 4, "fp32", "", SMALL)
        yield _bench(8, 4, "fp32", "with Triton", SMALL)
        return
    for size, batch, precision, way in (
        (64, 50, "fp32", ""), (64, 50, "fp32", "with Triton"), (224, 50, "fp32", ""),
        (224, 50, "fp32", "with Triton"), (64, 50, "bf16", ""), (64, 256, "fp32", ""),
        (64, 256, "bf16", ""), (224, 50, "bf16", ""), (224, 256, "bf16", ""),
        (224, 256, "fp32", ""),
    ):  # fmt: skip
        yield _bench(size, batch, precision, way, ("--rounds", "1" if size > 64 else "3"))


def _bench(size: int, batch: int, precision: str, way: str, options: tuple[str, ...]) -> Part:
    command = [
        sys.executable, "-m", "gradflow", "bench", "--json", "--image-size", str(size),
        "--batch-size", str(batch), "--precision", precision, *options,
    ]  # fmt: skip
    name = f"bench {size} px, {batch}, {precision} {way}".strip()
    return Part(name, command, 40, learn_times, TRITON[way], end=BENCHES_END)


def _training(arch: str, options: argparse.Namespace) -> Part:
    out = options.out / "on-cuda-runs" / arch
    data = "digits" if options.photographs is None else str(options.photographs.resolve())
    command = [
        sys.executable, "-m", "gradflow", "train", "--data", data, "--arch", arch, "--log-grads",
        "--wandb", "off", "--no-rivals", "--out", str(out),
    ]  # fmt: skip
    if options.quick:
        command += ["--width", "0.125", "--image-size", "8", "--epochs", "1"]
    learn = partial(learn_run, out)
    return Part(f"train {arch}", command, 60, learn, counts_when_stopped=True)


# -- what is learnt ----------------------------------------------------------------------------


def last_line(printed: str) -> Facts:
    return {"says": printed.strip().splitlines()[-1]}


def last_json(printed: str) -> Facts:
    return dict(json.loads(printed.strip().splitlines()[-1]))


def learn_times(printed: str) -> Facts:
    """Milliseconds of a bare step, and of each way its ratio to it."""
    timings = last_json(printed)["timings"]
    bare = sorted(timings[0]["seconds_per_step"])[len(timings[0]["seconds_per_step"]) // 2]
    ratios = {timing["name"]: timing["ratio"] for timing in timings[1:]}
    return {"bare_ms": 1e3 * bare, **ratios}


def learn_run(out: Path, _printed: str) -> Facts:
    """How far a training came, and what it recorded."""
    run = begun_in(out)
    if run is None:
        raise FileNotFoundError(f"no run in {out}")
    (network,) = run.networks()
    history = network.history()
    facts: Facts = {"epochs": len(history)}
    if history:
        last = history[-1]
        facts |= {name: last[name] for name in ("train_accuracy", "val_accuracy", "seconds")}
    if network.has_trace():
        trace = network.trace()
        facts |= {"recorded_steps": len(trace), "nonfinite": len(trace.nonfinite())}
    return facts


# -- the sums, against float64 on the CPU ------------------------------------------------------


def compare(device: torch.device, *, quick: bool) -> Facts:
    """The largest relative error of each sum, over tensors of the sizes that ResNet-34 has."""
    from gradflow.record import sums

    errors: dict[str, float] = {}
    for x, y in _tensors(quick):
        a, b = x.double(), y.double()
        u, v = x.to(device), y.to(device)
        output, active = sums.output_sums(u, 1)
        product, difference = sums.product_sums([u], [v])[0], sums.difference_sums([u], [v])[0]
        moments = sums.Moments(u, v.square(), 3, (0.9, 0.999), 1e-8)
        # Beside each sum what its error is measured by: the sum of the sizes of its terms.
        for name, got, want, size in (
            ("output sum", output[1], a.sum(), a.abs().sum()),
            ("output square", output[2], a.square().sum(), None),
            ("output nonzero", output[3], (a != 0).sum(), None),
            ("output max", output[4], a.abs().max(), None),
            ("active channels", active.sum(), (a != 0).any(3).any(2).any(0).sum(), None),
            ("gradient square", sums.gradient_sums(u)[0], a.square().sum(), None),
            ("product x²", product[0], a.square().sum(), None),
            ("product xy", product[3], (a * b).sum(), (a * b).abs().sum()),
            ("product rows", product[4], _rows(a, b), None),
            ("difference", difference[0], (a - b).square().sum(), None),
            ("Adam's steps", sums.adam_sums([moments])[0, 1], _adam(a, y), None),
        ):
            by = want.double() if size is None else size
            error = float((got.cpu().double() - want.double()).abs() / by)
            errors[name] = max(errors.get(name, 0.0), error)
    return errors


def _rows(a: Tensor, b: Tensor) -> Tensor:
    return (a.flatten(1).square().sum(1) * b.flatten(1).square().sum(1)).sum()


def _adam(m: Tensor, y: Tensor) -> Tensor:
    root = (y.square().double() / (1 - 0.999**3)).sqrt()
    return (m / (1 - 0.9**3) / (root + 1e-8)).square().sum()


def _tensors(quick: bool) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(50, 64, 56, 56), (512, 512, 3, 3), (50, 512, 7, 7), (64, 3, 7, 7)]
    for n, c, h, w in [(4, 3, 5, 5)] if quick else shapes:
        x, y = torch.randn(2, n, c, h, w, generator=generator).unbind()
        x = x.relu()
        y = y.clamp(min=0.01)  # of y² √v̂ is made: not much of a step should hang on a few
        for dtype in (torch.float32, torch.bfloat16):
            for layout in (torch.contiguous_format, torch.channels_last):
                u, v = (z.to(dtype).contiguous(memory_format=layout) for z in (x, y))
                yield u, v
        yield x * 1e-25, y * 1e-25  # float32 holds no squares of these


# -- all of it ---------------------------------------------------------------------------------


def table_of(outcomes: list[Outcome], device: str) -> Table:
    table = Table("part", "ended", "s", "found", title=f"gradflow on {device}")
    for outcome in outcomes:
        found = ", ".join(f"{name} {_short(value)}" for name, value in outcome.facts.items())
        table.add_row(outcome.name, outcome.state, f"{outcome.seconds:.0f}", found)
    return table


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=Path, help="folder of the original's photographs")
    parser.add_argument("--quick", action="store_true", help="small, to see that it works")
    parser.add_argument("--compare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.compare:
        print(json.dumps(compare(device, quick=options.quick)))
        return
    if device.type == "cpu" and not options.quick:
        parser.error("expected a CUDA device, but there is none; --quick runs on a CPU")
    if not options.quick and options.photographs is None:
        parser.error("expected --photographs FOLDER, what both networks train on")
    options.out = options.out.resolve()  # the parts run in the root of the repository
    logs = options.out / "on-cuda-logs"
    logs.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "a CPU (a trial)"
    outcomes: list[Outcome] = []
    start = time.perf_counter()
    for part in all_parts(options):
        left = start + part.end - time.perf_counter()
        outcomes.append(run(part, min(part.limit, left), logs))
        print(f"{outcomes[-1].name}: {outcomes[-1].state}", file=sys.stderr)
        facts = {"device": name, **environment(), "parts": [asdict(one) for one in outcomes]}
        write_json(options.out / "on-cuda.json", facts)
    Console(width=160).print(table_of(outcomes, name))


if __name__ == "__main__":
    main()
