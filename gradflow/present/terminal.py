"""What a person sees in the terminal: tables and small pictures, as text for rich."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradflow.analysis import thresholds as at
from gradflow.analysis.numerals import p_text, plain
from gradflow.present.terminal_plot import bar_picture
from gradflow.present.terminal_table import table

if TYPE_CHECKING:
    from gradflow.analysis import DepthProfile
    from gradflow.controls.gate import Gate
    from gradflow.controls.truths import Control, ControlResult
    from gradflow.examine.initial import InitialCheck, InitialProfile
    from gradflow.examine.trainability import Cause
    from gradflow.training.bench import Floor, Timing
    from gradflow.training.fit import Epoch

MAX_BARS = 54  # in a picture of a deeper network each bar stands for several layers


def epoch_line(name: str, epoch: "Epoch", n_epochs: int) -> str:
    """One line for a finished epoch."""
    best = "  best so far" if epoch.is_best else ""
    return (
        f"{name}  epoch {epoch.index + 1:3d}/{n_epochs}  lr {epoch.lr:7.1e}  "
        f"train loss {epoch.train_loss:.4f} acc {epoch.train_accuracy:.3f}  "
        f"val loss {epoch.val_loss:.4f} acc {epoch.val_accuracy:.3f}  "
        f"{epoch.seconds:5.1f} s{best}"
    )


def audit_view(audit: Mapping[str, Any], n_shown: int = 10) -> Group:
    """What `gradflow data` found; `audit` as Audit.to_json gives it."""
    counts = [(name, str(count)) for name, count in audit["class_counts"].items()]
    classes = table(("class", "images"), counts, right=("images",))
    lines = [
        f"readable       {audit['n_usable']} of {audit['n_images']}",
        f"distinct       {audit['n_distinct']} pictures; exact twins: "
        + _groups(audit["exact_twins"]),
        f"look distinct  {audit['n_near_distinct']}; near twins: {_groups(audit['near_twins'])}",
    ]
    if audit["sizes"]:
        lines.append("sizes          " + _sizes(audit["sizes"]))
    if audit.get("unread"):  # not in runs from before it was counted
        from gradflow.data.files import endings_text

        lines.append("not read       " + endings_text(audit["unread"]))
    if audit.get("labels_from"):
        lines.append("labels from    " + audit["labels_from"])
    alike = defaultdict(list)
    for name in audit["class_counts"]:
        alike[name.casefold()].append(name)
    lists = [
        *_list(
            "classes that differ in case only",
            [", ".join(names) for names in alike.values() if len(names) > 1],
            n_shown,
        ),
        *_list("cannot be read", [f"{b['key']}: {b['reason']}" for b in audit["bad"]], n_shown),
        *_list("files without a label", audit["unlabelled"], n_shown),
        *_list("twins with different labels", _conflicts(audit["conflicts"]), n_shown),
        *_list("near twins with different labels", _conflicts(audit["near_conflicts"]), n_shown),
    ]
    title = Text(f"{audit['name']}: {audit['n_images']} images")
    return Group(title, classes, *(Text(line) for line in [*lines, *lists]))


def split_view(split: Mapping[str, Any]) -> Text:
    """The parts of a split in one or two lines; `split` as Split.to_json gives it."""
    counts = split["counts"]
    n_test = counts["test"]
    if split["validation_is_test"]:
        text = (
            f"split          {split['kind']}: {counts['train']} train, {n_test} test. Validation "
            "and test set are the same: the best epoch is chosen on the test images."
        )
    else:
        text = (
            f"split          {split['kind']}: {counts['train']} train, "
            f"{counts['validation']} validation, {n_test} test"
        )
        if counts["set_aside"]:
            text += f", {counts['set_aside']} copies set aside"
    if counts["near_contaminated"]:
        text += (
            f"\ncontamination  {counts['contaminated']} of {n_test} test images "
            f"({counts['contaminated'] / n_test:.0%}) have an exact twin in the training set, "
            f"{counts['near_contaminated']} ({counts['near_contaminated'] / n_test:.0%}) an exact "
            "or near one. Their accuracy measures memory."
        )
    return Text(text)


def summary_view(
    summary: Mapping[str, Any], profiles: Mapping[str, "DepthProfile"]
) -> RenderableType:
    """The end of a run: accuracies, the test between the networks, depth profiles, what next."""
    return Group(
        _accuracy_table(summary),
        *(Text(line) for line in _comparison_lines(summary["comparisons"])),
        *_profile_lines(profiles, summary["networks"]),
        *(Text(line) for line in _recording_lines(summary["networks"])),
        *(Text(line) for line in _intervention_lines(summary["networks"])),
        Text(f"\nrun        {summary['run']}"),
        Text(f"next       gradflow report {summary['run']}"),
        Text(f"           gradflow saliency IMAGE --run {summary['run']}"),
    )


def probabilities_view(networks: Mapping[str, Mapping[str, float]]) -> Table:
    """Class probabilities, one column per network; the predicted class of each is marked."""
    best = {name: max(classes, key=classes.__getitem__) for name, classes in networks.items()}
    rows = [
        [label, *(f"{'→ ' if label == best[name] else ''}{classes[label]:.1%}"
                  for name, classes in networks.items())]
        for label in next(iter(networks.values()))
    ]  # fmt: skip
    return table(("class", *networks), rows, right=networks)


def bench_view(timings: Sequence["Timing"], title: str) -> Table:
    """Seconds per step and the ratio to the bare loop of the same round."""
    numbers = ("ms per step (median)", "ratio to bare (median)", "quartiles")
    rows = [
        (one.name, f"{np.median(one.seconds) * 1e3:.1f}", f"{one.ratio:.3f}",
         "{:.3f} to {:.3f}".format(*one.ratio_range))
        for one in timings
    ]  # fmt: skip
    return table(("", *numbers), rows, title, right=numbers)


def floor_line(floor: "Floor", bare: "Timing") -> Text:
    """The least that recording at every step can cost here."""
    share = floor.seconds / float(np.median(bare.seconds))
    return Text(
        f"floor of recording at every step: {floor.n_bytes / 1e6:.0f} MB at "
        f"{floor.bytes_per_second / 1e9:.0f} GB/s, {floor.seconds * 1e3:.1f} ms, "
        f"{share:.1%} of the bare step"
    )


def check_view(check: "InitialCheck", name: str) -> Group:
    """What `gradflow check` found: the answer, the sizes by depth, what it means, what to do."""
    answer, *rest = check.sentences()
    shape = "×".join(map(str, check.input_shape))
    lines = [
        f"{name}: {check.n_draws} draw{'s' * (check.n_draws > 1)}, input {shape}\n",
        f"{answer}\n",
        f"By depth, {len(check.layers)} layers, input → output (log scale, · is unknown):",
        *(line for key in _CHECK_ROWS for line in _check_lines(key, check.profiles[key])),
        "",
        *(f"- {sentence}" for sentence in rest),
        f"\nnext  {_NEXT[check.cause]}",
    ]
    return Group(*map(Text, lines))


_CHECK_ROWS = {
    "forward": "signal",
    "output_gradient": "gradient passed on",
    "scale_invariant": "effect of a weight",
}

_NEXT: dict["Cause", str] = {
    "vanishing": "Try an initialisation that suits the activation (kaiming_normal_ for ReLU), "
    "normalisation or skip connections, and check again.",
    "exploding": "Look for the first layer whose output is large, NaN or inf. Try smaller weights, "
    "normalisation, or skip connections whose branches start small, and check again.",
    "": "The start is not the problem. Record the training: gradflow.Recorder(model, optimizer).",
}


def _check_lines(key: str, profile: "InitialProfile") -> list[str]:
    """The picture of a size, and its numbers below: they fit 80 columns."""
    from gradflow.examine.words import times

    values = profile.median
    usable = values[np.isfinite(values) & (values > 0)]
    title = f"{profile.symbol}  {_CHECK_ROWS[key]}"
    if not len(usable):
        return [f"  {title:<23}none"]
    low, high = float(usable.min()), float(usable.max())
    # A flat profile would show its noise: the picture spans a factor of two at least.
    picture = bar_picture(_few(values), low, max(high, 2 * low))
    return [
        f"  {title:<23}{picture}",
        f"     {low:.2g} to {high:.2g}; first over last × {times(profile.rate.decades)}; "
        f"a line fits to ± {profile.rate.residual:.2f} decades",
    ]


def _few(values: np.ndarray) -> np.ndarray:
    """At most `MAX_BARS` values: the medians of neighbours."""
    if len(values) <= MAX_BARS:
        return values
    return np.array([np.median(part) for part in np.array_split(values, MAX_BARS)])


def controls_view(results: Sequence["ControlResult"], gate: "Gate") -> Group:
    """What `gradflow check --controls` found: each known truth, and the labels."""
    title = "λ: factor of the squared gradient per layer"
    columns = ("control", "truth", "measured", "allowed", "labels", "")
    rows = [
        (
            result.control.name,
            f"{result.control.expected:.4g}",
            f"{result.mean:.4g} ± {result.standard_error:.1g}",
            _tolerance(result.control),
            f"{result.n_labels_right} of {result.n_seeds} {result.control.label}",
            _passed(result.passed),
        )
        for result in results
    ]
    n_passed = sum(result.passed for result in results)
    cases = [f"{case.name}: {case.n_right} of {case.n} {case.label}" for case in gate.cases]
    return Group(
        table(columns, rows, title, right=("truth", "measured")),
        Text(f"{n_passed} of {len(results)} controls passed; ± is one standard error over seeds"),
        Text(f"\nlabels of the output gradient ({gate.seconds:.1f} s)"),
        *(Text(f"  {case}") for case in cases),
        Text(f"hit rate          {_share(gate.hit_rate, gate.hit_rate_interval)}"),
        Text(f"false alarm rate  {_share(gate.false_alarm_rate, gate.false_alarm_interval)}"),
        Text(f"gate              {_passed(gate.passed)}"),
    )


def _tolerance(control: "Control") -> str:
    if control.rtol > 0:
        return f"{control.rtol:.0%}" if control.rtol >= 0.01 else f"{control.rtol:g} of it"
    return f"{control.n_errors:g} standard errors"


def _passed(passed: bool) -> str:
    return "passed" if passed else "FAILED"


def _share(share: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{share:.1%} ({at.LEVEL} interval {low:.1%} to {high:.1%})"


def _accuracy_table(summary: Mapping[str, Any]) -> Table:
    numbers = ["epoch", "train", "validation", "test"]
    if any(network["published"] for network in summary["networks"]):
        numbers.append("published train / test")
    rows = []
    for network in summary["networks"]:
        for which in ("best", "last"):
            result = network[which]
            low, high = result["test"]["accuracy_interval"]
            row = [
                network["name"] if which == "best" else "",
                f"{which} ({result['epoch'] + 1})",
                f"{result['train']['accuracy']:.3f}",
                f"{result['validation']['accuracy']:.3f}",
                f"{result['test']['accuracy']:.3f} ({low:.3f} to {high:.3f})",
                _published(network["published"]),
            ]
            rows.append(row[: 1 + len(numbers)])
    return table(("network", *numbers), rows, f"accuracy ({at.LEVEL} interval)", right=numbers)


def _recording_lines(networks: Sequence[Mapping[str, Any]]) -> list[str]:
    """What recording cost, where a share of the training time was set for it."""
    return [
        f"{network['name']}: recording took {cost['share_of_time']:.1%} of the training time "
        f"(allowed {cost['share_allowed']:.1%}; a recorded step costs "
        f"{cost['price_of_a_recorded_step']:.1%} more; in the end one step in {cost['interval']})"
        for network in networks
        if (cost := network.get("recording")) is not None
    ]


def _intervention_lines(networks: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was changed on purpose, and what the checks found of it."""
    lines = []
    for network in networks:
        for done in network.get("interventions", ()):
            verdict = "" if done["passed"] else "  CHECK FAILED: it did not change what it says"
            lines.append(f"{network['name']}: {done['intervention']}{verdict}")
            lines += [f"  {_check_line(check)}" for check in done["checks"]]
    return ["", "interventions, with what was measured of them:", *lines] if lines else []


def _check_line(check: Mapping[str, Any]) -> str:
    measured = "not finite" if check["measured"] is None else f"{check['measured']:.4g}"
    if check["expected"] is None:
        return f"{check['what']}: {measured}"
    mark = "✓" if check["passed"] else "✗"
    return f"{mark} {check['what']}: {measured} (expected {check['expected']:.4g})"


def _published(results: Mapping[str, Any] | None) -> str:
    if results is None:
        return ""
    return f"{results['train_accuracy']:.3f} / {results['test_accuracy']:.3f}"


def _comparison_lines(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"seed {c['seed']}, best epochs: on {c['only_first_right']} test images only {c['first']} "
        f"is right, on {c['only_second_right']} only {c['second']} "
        f"(exact McNemar test, {p_text(c['p_value'])})"
        for c in comparisons
        if c["epoch"] == "best"
    ]


def _profile_lines(
    profiles: Mapping[str, "DepthProfile"], networks: Sequence[Mapping[str, Any]]
) -> list[Text]:
    if not profiles:
        return [Text("\nNo gradients were recorded: add --log-grads to see the depth profiles.")]
    positive = np.concatenate([p.values[np.nan_to_num(p.values) > 0] for p in profiles.values()])
    if not len(positive):
        return [Text("\nEvery recorded gradient was zero or not finite.")]
    low, high = float(positive.min()), float(positive.max())
    ratios = {n["name"]: n.get("grad_norm_first_to_last") or {} for n in networks}
    lines = [
        f"\ngradient norm by depth, input → output, geometric mean over training "
        f"(log scale, ▁ {low:.2g} to █ {high:.2g})"
    ]
    width = max(map(len, profiles))
    for name, profile in profiles.items():
        ratio = ratios.get(name, {})
        lines.append(
            f"{name:<{width}}  {bar_picture(profile.values, low, high)}  first/last convolution: "
            f"{_times(ratio.get('first_recorded_step'))} at the first recorded step, "
            f"{_times(ratio.get('over_training'))} over training"
        )
    lines.append("(above 1 the gradient is larger at the input; vanishing means far below 1)")
    return [Text(line) for line in lines]


def _times(value: float | None) -> str:
    return "unknown" if value is None else f"{plain(value, 2)}×"


def _groups(groups: Sequence[Sequence[str]]) -> str:
    if not groups:
        return "none"
    n_members = sum(map(len, groups))
    return f"{n_members} images in {len(groups)} group{'' if len(groups) == 1 else 's'}"


def _sizes(sizes: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{side} {range_['min']} to {range_['max']} px (median {range_['median']:g})"
        for side, range_ in sizes.items()
    )


def _conflicts(conflicts: Sequence[Mapping[str, str]]) -> list[str]:
    return [", ".join(f"{key} = {name}" for key, name in group.items()) for group in conflicts]


def _list(title: str, entries: Sequence[str], n_shown: int) -> list[str]:
    if not entries:
        return []
    more = [f"  … and {len(entries) - n_shown} more"] if len(entries) > n_shown else []
    return [f"{title}: {len(entries)}", *(f"  {entry}" for entry in entries[:n_shown]), *more]
