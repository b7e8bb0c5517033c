"""Top eigenvalues and spectral density of a Hessian: one Lanczos run here, two calls in other libraries.

All candidates run in turn in one process on one thread, in float32. Each is timed from the model to both answers, its
operator built anew, in seconds of CPU time. Every iterative solver is given the loosest of a list of tolerances at
which its top ten eigenvalues are within ACCURACY of a float64 reference; the time is the median over rounds, and
ratios are taken within rounds.
Networks without normalization: the libraries disagree on what the Hessian of a normalized one is (see the chapter
"Where second derivatives go wrong"). The other libraries are used where they are installed:

    pip install --no-deps curvlinops-for-pytorch==3.0.1 einops einconv unfoldNd linear_operator opt-einsum tqdm \\
        backpack-for-pytorch pyhessian
    python benchmarks/curvature.py                      # --exact adds the whole spectrum of the MLP, a minute
    python benchmarks/curvature.py --out results/curvature_cpu.json
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import importlib.metadata
import io
import json
import pathlib
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from normsurvey.analysis import Hessian, top_eigenvalues
from normsurvey.experiments.classifiers import batches, cross_entropy, mlp, sgd, train
from normsurvey.experiments.data import digits

ACCURACY, TOP, STEPS = 1e-5, 10, 64
PEERS = {"curvlinops": "curvlinops-for-pytorch", "pyhessian": "pyhessian"}
Solution = tuple[Tensor, tuple[Tensor, Tensor] | None]  # eigenvalues (10,); nodes and masses of the density


def cnn(seed: int = 0) -> nn.Sequential:
    """Three convolutions on 8 x 8 images, 96 858 parameters."""
    torch.manual_seed(seed)
    layers = [nn.Unflatten(1, (1, 8, 8))]
    for k, (c_in, c_out) in enumerate(((1, 28), (28, 56), (56, 160))):
        layers += [nn.Conv2d(c_in, c_out, 3, stride=1 + (k == 1), padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(160, 10))


def problems() -> dict[str, tuple[nn.Module, tuple[Tensor, Tensor]]]:
    """Name -> a network trained for a while on 500 digits, and the digits, both in double precision."""
    x, y, _, _ = digits(0, torch.float64)
    x, y = x[:500], y[:500]
    perceptron, convnet = mlp((64, 96, 32, 10)), cnn()
    train(perceptron, batches((x, y), 100), sgd(perceptron, 0.05, momentum=0.5), 40)
    train(convnet, batches((x.float(), y), 100), torch.optim.Adam(convnet.parameters(), 3e-3), 140)
    return {"mlp": (perceptron, (x, y)), "cnn": (convnet.double(), (x, y))}


def ours(model: nn.Module, data, tolerance: float) -> Solution:
    found = top_eigenvalues(Hessian(model, cross_entropy(data)), TOP, tolerance)
    density = found.density
    masses = torch.cat([torch.full_like(density.atoms, 1 / density.size), density.weights])
    return found.values, (torch.cat([density.atoms, density.nodes]), masses)


def curvlinops(model: nn.Module, data, tolerance: float, bounds: str = "estimated") -> Solution:
    from curvlinops import HessianLinearOperator
    from curvlinops.papyan2020traces.spectrum import lanczos_approximate_spectrum
    from scipy.sparse.linalg import eigsh

    operator = HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [data], check_deterministic=False
    )
    values = torch.from_numpy(eigsh(operator.to_scipy(), k=TOP, which="LA", tol=tolerance)[0].copy()).flip(0).double()
    # the favourable case: as if someone had told it the smallest eigenvalue; the largest is known by now
    known = None if bounds == "estimated" else (BOTTOM[len(model)], values[0].item())
    grid, density = lanczos_approximate_spectrum(operator, STEPS, num_repeats=1, boundaries=known)
    grid, density = grid.double(), density.double()
    return values, (grid, density / density.sum())


def pyhessian(model: nn.Module, data, tolerance: float) -> Solution:
    from pyhessian import hessian

    # its density calls a function that torch no longer has
    torch.eig = lambda t, eigenvectors: (torch.linalg.eigh(t)[0][:, None], torch.linalg.eigh(t)[1])
    computer = hessian(copy.deepcopy(model), nn.CrossEntropyLoss(), data=data, cuda=False)
    values, _ = computer.eigenvalues(maxIter=1000, tol=tolerance, top_n=TOP)
    nodes, weights = computer.density(iter=STEPS, n_v=1)
    nodes, weights = torch.tensor(nodes[0]).real.double(), torch.tensor(weights[0]).real.double()
    return torch.tensor(values, dtype=torch.float64).sort(descending=True).values, (nodes, weights / weights.sum())


BOTTOM: dict[int, float] = {}  # smallest eigenvalue by number of layers, for curvlinops' favourable case
CANDIDATES: dict[str, tuple[str | None, Callable, tuple[float, ...]]] = {
    "normsurvey": (None, ours, (1e-5,)),
    "curvlinops, two calls": ("curvlinops", curvlinops, (1e-2, 1e-3, 1e-4, 0.0)),
    "curvlinops, two calls, bounds given": (
        "curvlinops", lambda *a: curvlinops(*a, bounds="given"), (1e-2, 1e-3, 1e-4, 0.0),
    ),
    "PyHessian, two calls": ("pyhessian", pyhessian, (1e-6, 3e-7)),
}  # fmt: skip


def installed(peer: str | None) -> bool:
    if peer is None:
        return True
    try:
        importlib.metadata.version(PEERS[peer])
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def timed(function: Callable, *arguments) -> tuple[float, Solution]:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.process_time()
        solution = function(*arguments)
        return time.process_time() - start, solution


def distance(solution: Solution, eigenvalues: Tensor) -> float:
    """Wasserstein-1 between a density, points and masses, and all eigenvalues; over their range."""
    points, order = torch.cat([solution[1][0].cpu(), eigenvalues]).sort()
    masses = torch.cat([solution[1][1].cpu(), torch.full_like(eigenvalues, -1 / len(eigenvalues))])[order]
    area = (masses.cumsum(0)[:-1].abs() * points.diff()).sum()
    return (area / (eigenvalues.max() - eigenvalues.min())).item()


def reference(model: nn.Module, data, exact: bool) -> tuple[Tensor, Tensor, str]:
    """In float64 the top eigenvalues, all that are known, and how: from the dense matrix, or one long run."""
    hessian = Hessian(model, cross_entropy(data))
    if exact:
        dense = hessian.dense(limit=10_000)
        values = torch.linalg.eigvalsh((dense + dense.T) / 2).flip(0)
        return values[:TOP], values, "all eigenvalues"
    found = top_eigenvalues(hessian, TOP, 1e-8, max_steps=300)
    return found.values, torch.cat([found.density.atoms, found.density.nodes]), f"{found.products} products in float64"


def measure(name: str, model: nn.Module, data, rounds: int, exact: bool) -> dict:
    top, known, how = reference(model, data, exact)
    model, data = copy.deepcopy(model).float(), (data[0].float(), data[1])
    BOTTOM[len(model)] = known.min().item()
    chosen, rows, seconds = {}, {}, {}
    for label, (peer, function, tolerances) in CANDIDATES.items():
        if not installed(peer):
            print(f"  {label}: not installed, left out")
            continue
        for tolerance in tolerances:
            spent, solution = timed(function, model, data, tolerance)
            error = ((solution[0] - top) / top).abs().max().item()
            print(f"  {label}, tolerance {tolerance:g}: {spent:.2f} s, error {error:.1e}", flush=True)
            if error <= ACCURACY:
                break
        chosen[label], seconds[label] = (function, tolerance), [spent]  # the first round
        rows[label] = {"tolerance": tolerance, "error": error}
        rows[label] |= {"w1_over_range": distance(solution, known)} if exact else {}
    for _ in range(rounds - 1):
        for label, (function, tolerance) in chosen.items():
            seconds[label].append(timed(function, model, data, tolerance)[0])
    for label, row in rows.items():
        ratios = [theirs / own for theirs, own in zip(seconds[label], seconds["normsurvey"], strict=True)]
        row |= {"seconds": statistics.median(seconds[label]), "ratio": statistics.median(ratios)}
        print(
            f"  {label:36s} {row['seconds']:7.3f} s  x {row['ratio']:5.2f}  top-10 {row['error']:.1e} "
            f"(tolerance {row['tolerance']:g})"
            + (f"  W1/range {row['w1_over_range']:.1e}" if exact else ""), flush=True,
        )  # fmt: skip
    parameters = sum(p.numel() for p in model.parameters())
    loss = cross_entropy(data)(model).item()
    return {"parameters": parameters, "loss": loss, "top": top[0].item(), "reference": how, "candidates": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=["mlp", "cnn"], default=["mlp", "cnn"])
    parser.add_argument("--exact", action="store_true", help="reference density of the MLP: all its eigenvalues")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    versions = {"torch": torch.__version__} | {
        name: importlib.metadata.version(name) for peer, name in PEERS.items() if installed(peer)
    }
    record = {
        "device": "cpu", "machine": platform.processor() or platform.machine(), "threads": 1, "dtype": "float32",
        "date": datetime.date.today().isoformat(), "versions": versions, "accuracy": ACCURACY, "rounds": options.rounds,
        "networks": {},
    }  # fmt: skip
    for name, (model, data) in problems().items():
        if name in options.only:
            print(name, flush=True)
            record["networks"][name] = measure(name, model, data, options.rounds, options.exact and name == "mlp")
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
