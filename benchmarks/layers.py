"""Forward + backward of every layer, as a ratio to torch's batch normalization, and what it keeps for backward.

Candidate and baseline are measured in turn in one process on one thread, so that what disturbs the machine
disturbs both; the figure is the median over rounds of the ratio to the baseline measured directly before. Images
are compared with ``F.batch_norm``, rows of features with ``F.layer_norm``. The C library keeps what it has allocated
(``KEEP``): how often it gives memory back and faults it in again depends on the order of the candidates, and moved
their figures, torch's own call included, by up to 60 %.

    python benchmarks/layers.py                      # the catalogue's layers, on the CPU and a GPU if present
    python benchmarks/layers.py --only IterNorm MABN
    python benchmarks/layers.py --out results/layers_cpu.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

import normsurvey as ns

# What glibc reads when a process starts.
KEEP = {
    "MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000", "MALLOC_TOP_PAD_": "500000000",
}  # fmt: skip
SHAPES = {"images": (64, 64, 32, 32), "rows": (4096, 1024)}
# Layers whose public implementations were measured on rows; all others are measured on images alone.
ROWS = (
    "BatchNorm", "LayerNorm", "RMSNorm", "AdaNorm", "PowerNorm", "BatchRenorm", "SwitchableNorm", "IterNorm",
    "VarianceOnlyLayerNorm", "IsoBN", "DynamicLayerNorm", "StandardizationLayer",
)  # fmt: skip
# Options in which the layers are compared; all others take their defaults.
OPTIONS = {
    "GroupNorm": {"num_groups": 32},
    "GhostBatchNorm": {"ghost_size": 16},
    "BatchGroupNorm": {"num_groups": 32, "ghost_size": 16},
    "DecorrelatedBatchNorm": {"group_size": 16},
    "PCAWhitening": {"group_size": 16},
    "CholeskyWhitening": {"group_size": 16},
    "IterNorm": {"group_size": 16},
    "LocalContextNorm": {"window_size": 9},
    "ChannelEquilibrium": {"group_size": 16},
    "WhiteningColoring": {"group_size": 16},
    "ConditionalBatchNorm": {"num_classes": 10},
    "MABN": {"warmup": 0},
    "PowerNorm": {"warmup": 0},
    "ConditionalInstanceNorm": {"num_classes": 10},
    "SelfModulationBatchNorm": {"condition_features": 16},
    "SPADE": {"map_features": 4},
    "MixtureNorm": {"num_modes": 2},
    "DynamicNorm": {"max_batch_size": 64},
}
# Options on rows.
ROW_OPTIONS = {"IterNorm": {"group_size": 64}, "SwitchableNorm": {}, "PowerNorm": {"warmup": 0}}

Layer = Callable[[torch.Tensor], torch.Tensor]


def candidates(kind: str, only: list[str], device: torch.device) -> dict[str, Layer]:
    """Name -> function of the input: torch's modules, and the layers of the catalogue."""
    shape = SHAPES[kind]
    c, modules = shape[1], {}
    if kind == "images":
        modules = {
            "torch BatchNorm2d": torch.nn.BatchNorm2d(c),
            "torch GroupNorm(32)": torch.nn.GroupNorm(32, c),
            "torch GroupNorm(1)": torch.nn.GroupNorm(1, c),
            "torch LayerNorm(C, H, W)": torch.nn.LayerNorm(shape[1:]),
            "torch InstanceNorm2d": torch.nn.InstanceNorm2d(c, affine=True),
        }
    dims = {2: "NC", 4: "NCHW"}[len(shape)]
    for method_id, record in ns.catalogue.items():
        if record.kind != "layer" or dims not in record.shapes or (kind == "rows" and method_id not in ROWS):
            continue
        options = {"affine": True} if "affine" in record.signature.parameters else {}
        own = (OPTIONS if kind == "images" else ROW_OPTIONS).get(method_id, {})
        modules[method_id] = ns.create(method_id, c, **(options | own))
    chosen = {name: module.to(device) for name, module in modules.items() if not only or name in only}
    return {name: _conditioned(name, module, shape, device) for name, module in chosen.items()}


def _conditioned(name: str, module: torch.nn.Module, shape: tuple[int, ...], device: torch.device) -> Layer:
    if name in ("ConditionalBatchNorm", "ConditionalInstanceNorm"):
        labels = torch.randint(0, 10, shape[:1], device=device)
        return lambda x: module(x, labels)
    if name == "AdaIN":
        style = torch.randn(shape[0], shape[1], device=device), torch.rand(shape[0], shape[1], device=device)
        return lambda x: module(x, style)
    if name == "SelfModulationBatchNorm":
        latent = torch.randn(shape[0], 16, device=device)
        return lambda x: module(x, latent)
    if name == "SPADE":
        labels = torch.randint(0, 4, (shape[0], *shape[2:]), device=device)
        label_map = torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).float()
        return lambda x: module(x, label_map)
    return module


def baseline(kind: str, device: torch.device) -> Layer:
    """What the layers are compared with: one call of torch."""
    c = SHAPES[kind][1]
    weight, bias = (torch.full((c,), v, device=device, requires_grad=True) for v in (1.0, 0.0))
    if kind == "rows":
        return lambda x: F.layer_norm(x, (c,), weight, bias)
    running = torch.zeros(c, device=device), torch.ones(c, device=device)
    return lambda x: F.batch_norm(x, *running, weight, bias, True, 0.1, 1e-5)


def seconds(f: Layer, x: torch.Tensor, grad: torch.Tensor | None) -> float:
    """Duration of one forward pass, with the backward pass where ``grad`` is given."""
    x.grad = None
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    y = f(x)
    if grad is not None:
        y.backward(grad)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def saved(f: Layer, x: torch.Tensor) -> float:
    """Bytes kept for the backward pass, without parameters, relative to the input."""
    kept = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        f(x)
    return sum(kept.values()) / (x.numel() * x.element_size())


def measure(kind: str, only: list[str], device: torch.device, rounds: int) -> list[dict]:
    """One row per candidate: median ratios to the baseline, milliseconds, and bytes saved relative to the input."""
    x = torch.randn(SHAPES[kind], device=device, requires_grad=True)
    grad, base = torch.randn(SHAPES[kind], device=device), baseline(kind, device)
    functions, rows = candidates(kind, only, device), []
    figures = {name: {"forward": [], "both": [], "ms": []} for name in functions}
    for k in range(rounds + 2):  # what disturbs the machine for a while disturbs a few rounds of all
        for name, f in functions.items():
            alone = [seconds(g, x, None) for g in (base, f)]
            back = [seconds(g, x, grad) for g in (base, f)]
            if k >= 2:  # the first rounds warm up
                figures[name]["forward"].append(alone[1] / alone[0])
                figures[name]["both"].append(back[1] / back[0])
                figures[name]["ms"].append(1e3 * back[1])
    for name, f in functions.items():
        row = {key: round(statistics.median(values), 3) for key, values in figures[name].items()}
        options = (OPTIONS if kind == "images" else ROW_OPTIONS).get(name, {})
        rows.append({"name": name, "options": options} | row | {"saved": round(saved(f, x), 3)})
        print(f"{name:26} forward {row['forward']:6.2f}   both {row['both']:6.2f}   saved {rows[-1]['saved']:5.2f}")
    return rows


def main() -> None:
    """Measure, print a table, and store it with the device, the versions and the date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="measured rounds per candidate")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", default=[], help="names of candidates; by default all")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    tables = {kind: measure(kind, args.only, device, args.rounds) for kind in SHAPES}
    if args.out:
        on_gpu = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine()
        record = {
            "what": "ratio to F.batch_norm (images) or F.layer_norm (rows), median over interleaved rounds",
            "shapes": SHAPES, "dtype": "float32", "threads": 1, "rounds": args.rounds,
            "device": f"{device.type}: {name}", "torch": torch.__version__, "normsurvey": ns.__version__,
            "python": platform.python_version(), "date": datetime.date.today().isoformat(), **tables,
        }  # fmt: skip
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    if not KEEP.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP)
    main()
