"""Part 7: `plan --check` for the run of part 6: bytes, peak, and the time of each part, predicted against measured."""

from benchmarks.gpu.full_size import CONFIG, full_size_store, overrides_of
from benchmarks.gpu.records import Settings, Writer
from infnet_rec.trainer.plan_check import PEAK_TOLERANCE, check_plan


def run(settings: Settings, write: Writer) -> None:
    """Builds, trains some steps, and compares."""
    store = full_size_store(settings, write)
    batch_size = settings.pick(4, 2048, 8192)
    hardware = settings.out / "hardware.toml"
    result = check_plan(
        CONFIG, overrides_of(settings, store, batch_size), str(hardware) if hardware.is_file() else None
    )
    assert result is not None
    agreeing = 0
    for row in result["rows"]:
        if row["table"] and not row["wrong"]:
            agreeing += 1
            continue
        title = f"{row['part']} {row['table']}".strip()
        facts = {"predicted": row["predicted"], "ratio": row["ratio"]}
        unit = "GiB" if row["unit"] == "bytes" else "ms"
        scale = 2**30 if row["unit"] == "bytes" else 1.0
        headline = row["part"] in ("step", "peak allocated")
        verdict = "wrong" if row["wrong"] else "measured"
        limit = row["predicted"] / scale
        write(title, verdict, row["measured"] / scale, limit, unit=unit, headline=headline, **facts)
    write("single tables, to the byte", "right" if agreeing else "measured", agreeing, unit="numbers")
    write.compared("numbers that had to agree and do not", result["num_wrong"], 0, headline=True, peak=PEAK_TOLERANCE)
