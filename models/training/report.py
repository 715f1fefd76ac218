"""`python -m training.report`: REPORT.md and its plots, from the figures in `reports/`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot as plt

from training.classifiers import RULE
from training.measure import BATCH, BINS

FOLDER = "reports"
REPORT = "REPORT.md"
FIGURES = "figures.json"
WIDTHS = "widths.json"
SEEDS = "seeds.json"
RESNET = "resnet50-pca.json"
THREE = ("fast", "balanced", "accurate")

# The same plot from the same figures, byte for byte.
STYLE = {"svg.hashsalt": "visionmesh", "svg.fonttype": "none", "font.size": 9}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.report", description=__doc__)
    parser.add_argument("--models", type=Path, default=Path(__file__).parents[1], help="folder with reports/")
    render(parser.parse_args().models)


def read(path: Path) -> Any:
    """What the file holds; an empty object when there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def record_seed(path: Path, series: str, found: Mapping[str, Any]) -> None:
    """Adds the figures of one seed to a series in the JSON file, in place of older ones of that seed."""
    content: dict[str, list[Mapping[str, Any]]] = read(path)
    others = [entry for entry in content.get(series, []) if entry["seed"] != found["seed"]]
    content[series] = sorted([*others, found], key=lambda entry: entry["seed"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, content)


def render(models: Path) -> None:
    """Writes REPORT.md and the plots into the folder that has `reports/figures.json`."""
    folder = models / FOLDER
    figures = read(folder / FIGURES)
    found = figures["classifiers"]
    with plt.rc_context(STYLE):
        _plot_pareto(found, folder / "pareto.svg")
        _plot_reliability(found, folder / "reliability.svg")
    sections = [
        _head(figures["made"]),
        _extractor(figures["extractor"], figures["decoding"]),
        _candidates(found, figures["made"]),
        _fitted_to(found["trials"]),
        _calibration(found),
        _coverage(found),
        _consensus(found["consensus"]),
        _widths(read(folder / WIDTHS)),
        _resnet(read(folder / RESNET)),
        _seeds(read(folder / SEEDS)),
    ]
    (models / REPORT).write_text("\n".join(section for section in sections if section))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _size(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def _head(made: Mapping[str, Any]) -> str:
    return f"""\
# The models, measured

Written by `make train` (`{made["command"]}`), version {made["version"]};
`python -m training.report` writes it again from the figures in `{FOLDER}/`.

Fitted to {made["train_pictures"]:,} pictures of CIFAR-10; chosen and calibrated with
{made["validation_pictures"]:,} others (*validation*); stated for {made["test_pictures"]:,} more (*test*), by
which no code chooses anything; the rule of the choice and two of the candidates were settled by people who
had seen test figures of earlier runs. Times are processor time of one core on a machine that did other work
as well; compare them with one another only. ONNX Runtime {made["onnxruntime"]}.
"""


def _extractor(figures: Mapping[str, Any], decoding: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"**{name}**" if name == figures["deployed"] else name,
            _percent(found["top1_validation"]),
            _percent(found["top1"]),
            f"{found['ms_per_picture']:.3g}",
            f"{found['ms_per_picture_of_64']:.3g}",
            _size(found["bytes"]),
        ]
        for name, found in figures["variants"].items()
    ]
    variants = _table(["", "validation", "test", "ms, one picture", "ms a picture of 64", "size"], rows)
    sizes = _table(
        ["JPEG", "bytes", "ms"],
        (
            [f"{found['width']} x {found['height']}", _size(found["bytes"]), f"{found['ms_per_picture']:.3g}"]
            for found in decoding
        ),
    )
    return f"""\
## The extractor

Top-1 is that of the softmax head the net was trained with. The net looks at a picture and at its mirror
image and takes the mean; *one look* is what it would be without. Deployed is the one in bold. The file of a
float variant stores its weights as float16, in half of what stands here.

{variants}
What comes before the net: the file decoded and squeezed to 32 x 32 (`visionmesh.images.decode_to`).

{sizes}"""


def _candidates(found: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    roles = {name: role for role, name in found["chosen"].items()}
    rows = []
    for each in found["candidates"]:
        role = roles.get(each["name"])
        rows.append(
            [
                f"**{each['name']}** ({role})" if role else each["name"],
                _percent(each["validation"]["top1"]),
                _percent(each["test"]["top1"]),
                _percent(each["validation"]["ece"]),
                _percent(each["test"]["ece"]),
                f"{each['validation']['nll']:.4f}",
                f"{each['test']['nll']:.4f}",
                f"{each['test']['brier']:.4f}",
                f"{each['operations']:,}",
                f"{each['ms_row_p50']:.3g} / {each['ms_row_p99']:.3g}",
                f"{each['ms_256_p50']:.3g} / {each['ms_256_p99']:.3g}",
                f"{each['memory_mib']:.1f}",
                _size(each["bytes"]),
            ]
        )
    columns = [
        "classifier",
        "top-1 val.",
        "top-1 test",
        f"ECE val. ({BINS} bins)",
        "ECE test",
        "NLL val.",
        "NLL test",
        "Brier test",
        "operations a row",
        "ms, 1 row, p50 / p99",
        f"ms, {BATCH} rows, p50 / p99",
        "memory, MiB",
        "file",
    ]
    highest = max(each["validation"]["top1"] for each in found["candidates"])
    deviations = [
        100 * (highest * (1 - highest) / made[f"{part}_pictures"]) ** 0.5 for part in ("validation", "test")
    ]
    return f"""\
## The classifiers

The standard error of a top-1 is {deviations[0]:.2f} points on the validation pictures and
{deviations[1]:.2f} on the test pictures: what is much nearer to one another differs by luck.

{_table(columns, rows)}
![top-1 against operations, milliseconds and file size]({FOLDER}/pareto.svg)

How the three are chosen:

{RULE}
Memory is by how much a fresh process grows when it loads the model and answers 1 row and 256.
A random forest and a support vector machine stay available by name, as `classifier-random-forest` and
`classifier-svm`.
"""


def _fitted_to(trials: Sequence[Mapping[str, Any]]) -> str:
    best = {name: min(each["nll"] for each in trials if each["name"] == name) for name in _names(trials)}
    rows = [
        [
            each["name"],
            each["source"],
            each["calibration"],
            _percent(each["top1"]),
            _percent(each["ece"]),
            f"**{each['nll']:.4f}**" if each["nll"] == best[each["name"]] else f"{each['nll']:.4f}",
        ]
        for each in trials
    ]
    columns = ["classifier", "fitted to", "calibration", "top-1 val.", "ECE val.", "NLL val."]
    return f"""\
### What they are fitted to

The net knows the pictures it was trained on, so their descriptors are further apart than those of others. All
figures are of validation pictures that neither the classifier nor its calibration was fitted to (five folds).
The least NLL is what is kept of each.

{_table(columns, rows)}"""


def _names(trials: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(each["name"] for each in trials))


def _by_role(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    by_name = {each["name"]: each for each in found["candidates"]}
    return {role: by_name[found["chosen"][role]] for role in THREE} | {"consensus": found["consensus"]}


def _calibration(found: Mapping[str, Any]) -> str:
    rows = [
        [role, _percent(each["test"]["ece"]), f"{each['test']['nll']:.4f}", f"{each['test']['brier']:.4f}"]
        for role, each in _by_role(found).items()
    ]
    return f"""\
## Calibration

On the test pictures. Of the answers that are 95 % sure, 95 in 100 should be right: points on the line.

{_table(["", f"ECE ({BINS} bins)", "NLL", "Brier"], rows)}
![reliability of the three and the consensus]({FOLDER}/reliability.svg)
"""


def _coverage(found: Mapping[str, Any]) -> str:
    rows = []
    for role, each in _by_role(found).items():
        rows.append([role])
        for point in each["coverage"]:
            answered, reached = _percent(point["answered"]), _percent(point["reached"])
            rows[-1].append(f"{answered} from {point['threshold']:.2f} on ({reached} right)")
    wanted = [f"at {point['precision']:.0%} precision" for point in found["consensus"]["coverage"]]
    return f"""\
## What share each answers

Answering only where the confidence is high enough: the threshold is the lowest that gives the precision on
the validation pictures; the share answered and the precision reached are those of the test pictures.

{_table(["", *wanted], rows)}"""


def _consensus(agreed: Mapping[str, Any]) -> str:
    weights = ", ".join(f"{name} {weight:.3f}" for name, weight in agreed["weights"].items())
    return f"""\
## The consensus

Probabilities proportional to exp(sum of weight x log probability), weights of 0 or more by maximum likelihood
on the validation pictures: {weights}. On the test pictures: top-1 {_percent(agreed["test"]["top1"])}, ECE
{_percent(agreed["test"]["ece"])}, NLL {agreed["test"]["nll"]:.4f}.
"""


def _widths(compared: Sequence[Mapping[str, Any]]) -> str:
    if not compared:
        return ""
    bytes_rows = [
        [
            str(each["descriptors"]),
            _percent(each["top1_head"]),
            f"{each['bytes_json']:.0f}",
            f"{each['bytes_in_batch']:.0f}",
        ]
        for each in compared
    ]
    names = _names(compared[0]["classifiers"])
    rows = []
    for name in names:
        of_width = [next(one for one in each["classifiers"] if one["name"] == name) for each in compared]
        rows.append(
            [
                name,
                *(_percent(one["top1"]) for one in of_width),
                *(f"{one['ms_row_p50']:.3g}" for one in of_width),
                *(f"{one['ms_256_p50']:.3g}" for one in of_width),
            ]
        )
    numbers = [str(each["descriptors"]) for each in compared]
    columns = [
        "",
        *(f"top-1, {number}" for number in numbers),
        *(f"ms, 1 row, {number}" for number in numbers),
        *(f"ms, {BATCH} rows, {number}" for number in numbers),
    ]
    return f"""\
## 10, 20 and 50 descriptors

The trunk of the net is the trained one; for each width a linear bottleneck and a softmax head were fitted to
what it sees. A head over ten classes looks along nine directions only, so ten numbers can carry all that this
head uses; what more numbers add is redundancy. Bytes are of `ImageFeatures` as it is published, alone and for
each of 64 that are compressed together (zstd).

{_table(["descriptors", "top-1 of the head", "bytes alone", "bytes in a batch of 64"], bytes_rows)}
{_table(columns, rows)}"""


def _resnet(found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    ways = list(dict.fromkeys(way for values in found["top1"].values() for way in values))
    top1 = _table(
        ["top-1, test", *(way.replace("_", " ") for way in ways)],
        (
            [name.replace("_", " "), *(_percent(values[way]) if way in values else "" for way in ways)]
            for name, values in found["top1"].items()
        ),
    )
    return f"""\
## ResNet50 and PCA

{found["origin"]}, at {found["side"]} x {found["side"]}: `{found["command"]}`.
{found["features"]:,} features to {found["descriptors"]} descriptors, which keep
{_percent(found["explained_variance"])} of the variance; fitted to {found["training_pictures"]:,} pictures and
measured on {found["test_pictures"]:,}.

{top1}"""


def _seeds(content: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    series = [("baseline", "top1", "ResNet-20")]
    series += [("ours", name, name) for name in (*THREE, "consensus")]
    rows = []
    for kind, key, title in series:
        entries = content.get(kind, [])
        if entries:
            values = [entry[key] for entry in entries]
            each = ", ".join(f"{_percent(entry[key])} ({entry['seed']})" for entry in entries)
            spread = f"{100 * (max(values) - min(values)):.2f} points" if len(values) > 1 else "one seed only"
            rows.append([title, _percent(mean(values)), spread, each])
    if not rows:
        return ""
    epochs = "; ".join(
        f"{title} {', '.join(sorted({str(entry['epochs']) for entry in content[kind]}))} epochs"
        for kind, title in (("baseline", "ResNet-20"), ("ours", "the extractor"))
        if content.get(kind)
    )
    return f"""\
## Seeds

Top-1 on the test pictures, of trainings that differ in nothing but their seed, on the same files and split:
{epochs}.
The ResNet-20 is a plain one (`make train-baseline`). Spread is the highest less the lowest.

{_table(["", "mean", "spread", "each (seed)"], rows)}"""


def _plot_pareto(found: Mapping[str, Any], path: Path) -> None:
    roles = {name: role for role, name in found["chosen"].items()}
    axes_of = (
        ("operations", "operations a row"),
        ("ms_256_p50", f"ms, {BATCH} rows"),
        ("bytes", "bytes of the file"),
    )
    figure, panels = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True, layout="constrained")
    for panel, (key, title) in zip(panels, axes_of, strict=True):
        for each in found["candidates"]:
            role = roles.get(each["name"])
            label = f"{each['name']} ({role})" if role else each["name"]
            place = (each[key], 100 * each["validation"]["top1"])
            panel.plot(*place, "o" if role else "x", markersize=8 if role else 6, label=label)
        panel.set(xscale="log", xlabel=title)
        panel.margins(x=0.15, y=0.15)
    panels[0].set_ylabel("top-1 on validation, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    _save(figure, path)


def _plot_reliability(found: Mapping[str, Any], path: Path) -> None:
    figure, panels = plt.subplots(1, 4, figsize=(10, 2.8), sharey=True, layout="constrained")
    for panel, (role, each) in zip(panels, _by_role(found).items(), strict=True):
        panel.plot([0, 1], [0, 1], color="tab:gray", linewidth=0.8)
        bins = each["reliability"]
        panel.plot([one["confidence"] for one in bins], [one["top1"] for one in bins], "o-", markersize=3)
        panel.bar([one["confidence"] for one in bins], [one["share"] for one in bins], 0.04, alpha=0.3)
        panel.set(title=role, xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
    panels[0].set_ylabel("share that is right; bars: of all")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
