"""The doctor of a run: one machine's checks on every host, and what ranks can only find out together."""

import json as json_module
import socket
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from infnet_rec.config.load import load_config
from infnet_rec.config.run import RunConfig
from infnet_rec.data.run_data import RunData, open_data
from infnet_rec.diagnostics import doctor
from infnet_rec.diagnostics.agreement import MAX_NAMED, Identity, Place, digest, identity, ranks_in_words
from infnet_rec.diagnostics.doctor import Check
from infnet_rec.diagnostics.preflight import THOROUGH, agree, facts_json, judged, look_around, read, written
from infnet_rec.diagnostics.rank_checks import RankFacts
from infnet_rec.distributed.process_group import (
    World,
    broadcast_from_rank0,
    check_gpus,
    gather_to_rank0,
    process_group,
    silence_third_party_warnings,
    use_threads,
    world_from_env,
)
from infnet_rec.errors import Refusal
from infnet_rec.launcher.rank_environment import is_rank
from infnet_rec.planner.plan_file import PlanFile
from infnet_rec.planner.run_plan import check_run, plan_model
from infnet_rec.planner.tables import meta_model


def doctor_ranks(config_path: Path | None, overrides: Sequence[str], *, json: bool) -> int:
    """Looks at one machine, or with a configuration or under torchrun at one rank of many; rank 0 prints.

    Returns:
        0 when all is sound, else 3; the same on all ranks.

    Raises:
        UserError: the configuration or its store is at fault.
    """
    if config_path is None and not is_rank():
        return doctor.run_checks(json=json)
    config = None if config_path is None else load_config(config_path, overrides)
    world, data = world_from_env(), None if config is None else open_data(config)
    check_gpus(world)
    if config is not None and data is not None:
        check_run(config, data, world)
    silence_third_party_warnings()
    use_threads(0 if config is None else config.train.num_threads, world)
    machine = doctor.diagnose("left out" if world.world_size > 1 else "tried") if world.local_rank == 0 else []
    with process_group(world):
        checks, ranks = _together(config, data, world)
        everywhere = _everywhere(machine, world)
        known = {check.name for check in checks}
        shown = [*(check for check in everywhere if check.name not in known), *checks]
        # Collective: the others leave after rank 0 has printed; a launcher ends all when one rank leaves with a fault.
        return int(broadcast_from_rank0(world, lambda: str(doctor.tell(shown, facts_json(ranks), json=json))))


def _together(config: RunConfig | None, data: RunData | None, world: World) -> tuple[list[Check], list[RankFacts]]:
    """What ranks find out together; measured only where they agree, since others speak another language."""
    own = identity(config, data, world)
    faults = agree(own, data, world)
    checks = same(own, faults, world)
    if faults:
        return checks, []
    plan: PlanFile | None = None
    if config is not None and data is not None:
        try:
            plan = plan_model(meta_model(config, data), config, data, world)
        except Refusal as refusal:  # on all ranks
            text = str(refusal).splitlines()[0]
            checks.append(Check("plan", text, "infnet-rec plan  # with this configuration: it says what would fit"))
    ranks = look_around(world, THOROUGH)
    return [*checks, *judged(ranks, plan, world)], ranks


def same(own: Identity, faults: Sequence[Check], world: World) -> list[Check]:
    """A check for each aspect: its fault, or that all ranks agree."""
    faulty = {fault.name for fault in faults}
    agreed = [aspect for aspect in own if aspect not in faulty] if world.world_size > 1 else []
    words = f"{world.world_size} ranks agree"
    return [
        *(Check(f"same {aspect}", f"{words}, {digest(own[aspect])}") for aspect in agreed),
        *(replace(fault, name=f"same {fault.name}") for fault in faults),
    ]


def _everywhere(machine: Sequence[Check], world: World) -> list[Check]:
    """The checks of all machines on rank 0; each machine's first rank has made them. Collective."""
    said = gather_to_rank0(world, json_module.dumps([socket.gethostname(), written(machine)]))
    heard = [json_module.loads(text) for text in said]
    places = [Place(rank, host) for rank, (host, _) in enumerate(heard)]
    return merged(places, [read(text) for _, text in heard])


def merged(places: Sequence[Place], checks: Sequence[Sequence[Check]]) -> list[Check]:
    """One check a name where all found the same; what is wrong somewhere says where.

    Args:
        places: of ranks.
        checks: of the same ranks; a rank that looked at nothing has none.
    """
    by_name: dict[str, dict[Check, list[Place]]] = defaultdict(lambda: defaultdict(list))
    for here, theirs in zip(places, checks, strict=True):
        for check in theirs:
            by_name[check.name][check].append(here)
    rows = []
    for name, found in by_name.items():
        wrong = {check: those for check, those in found.items() if check.remedy}
        if len(found) == 1:
            rows += found
        elif wrong:
            rows += [replace(check, found=f"{ranks_in_words(those)}: {check.found}") for check, those in wrong.items()]
        else:
            words = [f"{check.found} on {ranks_in_words(those)}" for check, those in found.items()]
            more = [f"and {len(words) - MAX_NAMED} more"] if len(words) > MAX_NAMED else []
            rows.append(Check(name, "; ".join([*words[:MAX_NAMED], *more])))
    return rows
