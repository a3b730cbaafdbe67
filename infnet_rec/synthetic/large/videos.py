"""The video files of KuaiRand-27K and -1K, made from any range of ids."""

import numpy as np
import pyarrow as pa

from infnet_rec.synthetic.draws import Draws, Flags, Floats, Ints, picked
from infnet_rec.synthetic.facts import large_facts
from infnet_rec.synthetic.kuairand.videos import statistics_of
from infnet_rec.synthetic.large.calendar import Calendar
from infnet_rec.synthetic.large.catalogue import LEVELS, Catalogue
from infnet_rec.synthetic.lines import float_text, joined_lines, number_lines

# Videos of the pool with an oddity (large_catalogue.py) have it in the column named here.
NO_DATE, NO_SIZE, SMALLEST, LARGEST, LARGEST_MUSIC, NO_STATUS = 1, 2, 3, 4, 5, 6
SMALLEST_SIZE, LARGEST_SIZE = (1, 2), (12_096, 12_288)
OWN_MUSIC, MUSIC_POOL = 0.36, 0.1


def basic_lines(catalogue: Catalogue, calendar: Calendar, low: int, high: int) -> bytes:
    """The lines of the basic file for videos low..high-1, without the header."""
    facts = large_facts().videos
    video = np.arange(low, high)
    rank = catalogue.ranks_of(video)
    draws = Draws.at(catalogue.seed, "video", video)
    traits = catalogue.traits(video, rank)
    kind = catalogue.drawn(draws, "kind", [count for _, _, count, _ in facts["kinds"]], video)
    oddity = catalogue.drawn(draws, "oddity", [1], video)
    first_day = np.datetime64(calendar.dataset.first_date, "D")
    dates = (first_day + catalogue.upload_days(video, rank, calendar)).astype(str)
    status = catalogue.drawn(draws, "visible_status", facts["visible_status"], video)
    width, height = _sizes(draws, oddity)
    music_type = catalogue.drawn(draws, "music_type", list(facts["music_type"].values()), video)
    music_types = np.array([int(float(name)) for name in facts["music_type"]])
    mute = draws.below(facts["null"]["music_type"], "no music") | (video == 0)

    def null(name: str, odd: int) -> Flags:
        return draws.below(facts["null"][name], f"null {name}") | (oddity == odd)

    no_size = null("server_width", NO_SIZE)
    columns = [
        pa.array(video).cast(pa.string()),
        pa.array(traits.author_id).cast(pa.string()),
        pa.array([name for _, name, *_ in facts["kinds"]]).take(pa.array(kind)),
        pa.array(dates, mask=null("upload_dt", NO_DATE)),
        pa.array([name for name, *_ in facts["kinds"]]).take(pa.array(kind)),
        float_text(status, null("visible_status", NO_STATUS)),
        float_text(traits.duration_ms, traits.duration_ms == 0),
        float_text(width, no_size),
        float_text(height, no_size),
        pa.array(_music_ids(draws, video, catalogue, oddity == LARGEST_MUSIC, mute)).cast(pa.string()),
        float_text(music_types[music_type], mute),
        pa.array([f'"{text}"' if "," in text else text for text, _ in facts["tags"]]).take(pa.array(traits.tag)),
    ]
    return joined_lines(columns)


def _sizes(draws: Draws, oddity: Ints) -> tuple[Ints, Ints]:
    sizes = np.array(large_facts().videos["sizes"])
    size = sizes[picked(draws.uniform("size"), sizes[:, 2]), :2]
    size[oddity == SMALLEST] = SMALLEST_SIZE
    size[oddity == LARGEST] = LARGEST_SIZE
    return size[:, 0], size[:, 1]


def _music_ids(draws: Draws, video: Ints, catalogue: Catalogue, largest: Flags, mute: Flags) -> Ints:
    """Ids beyond 32 bits; some four of nine videos have one that no other has."""
    facts = large_facts().videos
    shared = (catalogue.num_videos * MUSIC_POOL * draws.uniform("which music") ** 2.0).astype(np.int64)
    own = draws.below(OWN_MUSIC, "own music")
    music = np.where(own, 2 * video, 2 * shared + 1)
    place = Draws.at(catalogue.seed, "music", music).uniform("id")
    ids = np.rint(np.interp(place, facts["music_levels"], facts["music_id"])).astype(np.int64)
    ids[largest] = facts["music_id"][-1]
    return np.where(mute, 0, ids)


def statistic_table(catalogue: Catalogue, low: int, high: int) -> Floats:
    """The statistics file for videos low..high-1, as columns in the order of the file."""
    facts = large_facts().videos
    video = np.arange(low, high)
    draws = Draws.at(catalogue.seed, "video", video)
    scores = catalogue.scores(draws, catalogue.ranks_of(video), len(facts["names"]))
    columns = statistics_of(scores, LEVELS, facts)
    return np.stack([video.astype(np.float64), *columns.values()], axis=1)


def statistic_lines(catalogue: Catalogue, low: int, high: int, num_parts: int) -> list[bytes]:
    """The lines of each part of the statistics file for videos low..high-1, without the header."""
    table = statistic_table(catalogue, low, high)
    part = Draws.at(catalogue.seed, "video", np.arange(low, high)).uniform("statistic part") * num_parts
    return [number_lines(table[part.astype(np.int64) == number], 2) for number in range(num_parts)]
