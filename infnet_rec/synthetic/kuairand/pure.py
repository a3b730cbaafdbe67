"""The files of KuaiRand-Pure: a pool of a few thousand videos, all of whose traits are in memory."""

from typing import Any

import numpy as np

from infnet_rec.synthetic.facts import kuairand_facts
from infnet_rec.synthetic.kuairand.users import HEADER as USER_HEADER
from infnet_rec.synthetic.kuairand.users import user_csv
from infnet_rec.synthetic.kuairand.videos import BASIC_HEADER, STATISTIC_HEADER, basic_csv, statistic_csv
from infnet_rec.synthetic.kuairand.world import LOG_HEADER, SmallWorld, log_columns, make_world
from infnet_rec.synthetic.lines import log_lines
from infnet_rec.synthetic.plan import Chunk, Plan, chunks, make_plan

__all__ = ["chunks", "file_headers", "make_chunk", "make_plan", "make_world", "notes"]

EARLY = "data/log_standard_4_08_to_4_21_pure.csv"
LATE = "data/log_standard_4_22_to_5_08_pure.csv"
RANDOM = "data/log_random_4_22_to_5_08_pure.csv"
USERS = "data/user_features_pure.csv"
BASIC = "data/video_features_basic_pure.csv"
STATISTIC = "data/video_features_statistic_pure.csv"

ABOUT = (
    "The random log is smaller than the real one (0.83 of the standard logs), because training does not read it. A "
    "user's taste, which the user's history shows, decides more here than in the real log. The rows follow statistics "
    "of KuaiRand (Gao et al., CIKM 2022)."
)


def file_headers(plan: Plan) -> dict[str, str]:
    """Path of each CSV file -> its header line."""
    logs = dict.fromkeys((EARLY, LATE, RANDOM), LOG_HEADER)
    return logs | {USERS: USER_HEADER, BASIC: BASIC_HEADER, STATISTIC: STATISTIC_HEADER}


def make_chunk(world: SmallWorld, chunk: Chunk) -> tuple[dict[str, bytes], int]:
    """The lines that one chunk of users or videos adds to each file, and the number of rows of the standard log."""
    kind, low, high = chunk
    plan = world.plan
    if kind == "videos":
        basic = basic_csv(plan.seed, low, high, plan.num_videos)
        return {BASIC: basic, STATISTIC: statistic_csv(plan.seed, low, high)}, 0
    standard, random = log_columns(world, low, high, "standard"), log_columns(world, low, high, "random")
    early = standard["date"] < int(plan.dataset.split_date.strftime("%Y%m%d"))
    parts = {
        EARLY: log_lines(standard, early),
        LATE: log_lines(standard, ~early),
        RANDOM: log_lines(random, np.ones(len(random["date"]), dtype=bool)),
        USERS: user_csv(plan.seed, low, high, plan.num_users),
    }
    return parts, len(early)


def notes(plan: Plan) -> dict[str, Any]:
    facts = kuairand_facts()
    return plan.numbers() | {
        "statistics_from": facts.provenance,
        "statistics_licence": facts.licence,
        "about": ABOUT,
    }
