"""`bench compare`: two results of one verb of `bench`, with a ratio and how sure it is."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infnet_rec.benchmark.samples import ratio
from infnet_rec.config.toml import read_json
from infnet_rec.errors import UserError

# What must be alike for a ratio to say something about one change; the rest of a result is what was measured.
CONDITIONS = (
    "machine",
    "store",
    "config",
    "model",
    "num_ranks",
    "ranks_per_node",
    "global_batch_size",
    "batch_size",
    "width",
    "shape",
    "precision",
)
NOT_CONDITIONS = ("machine.date", "machine.load")

JSON = dict[str, Any]
# By name: seconds of each sample, and examples that one does.
Samples = dict[str, tuple[list[float], float]]


def compare_results(before_path: Path, after_path: Path) -> JSON:
    """How many times the second's examples a second are the first's.

    Raises:
        UserError: a file that no verb of `bench` wrote, or results of two verbs.
    """
    before, after = _read(before_path), _read(after_path)
    if before["bench"] != after["bench"]:
        raise UserError(
            f"{before_path} is of bench {before['bench']} and {after_path} of bench {after['bench']}; compare two "
            "results of one verb"
        )
    first, second = _samples(before, before_path), _samples(after, after_path)
    ratios = {}
    for name in first:
        if name in second:
            (before_s, before_examples), (after_s, after_examples) = first[name], second[name]
            ratios[name] = ratio([s / before_examples for s in before_s], [s / after_examples for s in after_s])
            ratios[name] |= {"num_before": len(before_s), "num_after": len(after_s)}
    if not ratios:
        raise UserError(
            f"{before_path}, {after_path}: measured nothing of one name; {', '.join(first)}; {', '.join(second)}"
        )
    return {
        "bench": "compare",
        "of": before["bench"],
        "before": str(before_path),
        "after": str(after_path),
        "ratios": ratios,
        "differences": [
            {"key": key, "before": old, "after": new} for key, old, new in setting_differences(before, after)
        ],
    }


def _read(path: Path) -> JSON:
    result = read_json(path)
    if not isinstance(result.get("bench"), str):
        raise UserError(
            f"{path}: is no result of infnet-rec bench; write one with 'infnet-rec bench run CONFIG --out FILE'"
        )
    return result


def _samples(result: JSON, path: Path) -> Samples:
    try:
        found = dict(_found(result))
        sound = found and all(
            isinstance(s, int | float) and s > 0 for taken, examples in found.values() for s in (*taken, examples)
        )
    except (KeyError, TypeError, AttributeError):
        sound, found = False, {}
    if not sound or not all(taken for taken, _ in found.values()):
        raise UserError(f"{path}: holds no times of bench {result['bench']} that could be compared; measure it anew")
    return found


def _found(result: JSON) -> Iterator[tuple[str, tuple[list[float], float]]]:
    match result["bench"]:
        case "run":
            yield "step", (result["step"]["samples_s"], result["global_batch_size"])
        case "input":
            yield "batch", (result["batch"]["samples_s"], result["batch_size"])
        case "step":
            for name, fact in result["steps"].items():
                yield name, (fact["samples_s"], result["batch_size"])
        case "tower":
            for kind, facts in result["passes"].items():
                for form, fact in facts["forms"].items():
                    samples_s = [ms / 1e3 for ms in fact["ms_of_rounds"]]
                    yield f"{kind.replace('_', ' and ')}, {form}", (samples_s, result["shape"]["batch_size"])
        case "embedding":
            for name, fact in result["lookups"].items():
                yield f"forward and backward, {name}", (fact["samples_s"], result["global_batch_size"])
        case _:
            return


def setting_differences(before: JSON, after: JSON) -> Iterator[tuple[str, Any, Any]]:
    """Conditions that the two do not share: the key and both values."""
    old, new = (dict(_flat({key: one.get(key) for key in CONDITIONS})) for one in (before, after))
    for key in sorted(old.keys() | new.keys()):
        if key not in NOT_CONDITIONS and old.get(key) != new.get(key):
            yield key, old.get(key), new.get(key)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def comparison_lines(result: JSON) -> list[str]:
    """The comparison for people."""
    text = [f"{result['after']} against {result['before']}, examples/s of bench {result['of']}"]
    width = max(len(name) for name in result["ratios"])
    for name, one in result["ratios"].items():
        sure = "" if one["low"] > 1 or one["high"] < 1 else "; may be no difference"
        text.append(
            f"  {name:<{width}}  {one['ratio']:.3f} times, between {one['low']:.3f} and {one['high']:.3f} with 95 % "
            f"confidence ({one['num_before']} and {one['num_after']} samples){sure}"
        )
    if result["differences"]:
        text.append("not measured under the same conditions:")
        text += [f"  {one['key']}: {one['before']} and {one['after']}" for one in result["differences"]]
    return text
