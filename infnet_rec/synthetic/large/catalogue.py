"""Millions of videos without a list of them: which video a row shows, and what drives the labels of any video.

Videos have ranks by popularity. Each row is dealt a slot; a curve of exposures shares the slots out among
the ranks; the rank, shuffled, is the video's id. Each step can be taken backwards, so a video knows its rows and is
never dated later than the first of them. All traits of a video are hashes of its id and of its rank.

The first few thousand ids are the pool of the random log. Values that are rare are given to videos of the pool.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np

from infnet_rec.synthetic.draws import Draws, Floats, Ints, correlated, picked
from infnet_rec.synthetic.facts import cholesky, from_scores, large_facts, normal_score
from infnet_rec.synthetic.kuairand.tastes import blended, tag_vectors
from infnet_rec.synthetic.kuairand.videos import CLICK_SD, LIKE_SD, NUM_TRAITS
from infnet_rec.synthetic.large.calendar import Calendar
from infnet_rec.synthetic.permutation import Curve, Deal, Permutation
from infnet_rec.synthetic.plan import MAX_VIDEOS, MIN_VIDEOS, Dataset, Plan

POOL, POOL_UNSHOWN = 7_583, 32
FLATTEST, MIN_MOST = 0.4, 8
# The normal scores of the extremes, where one of 32 million draws falls.
LEVELS = np.array([-5.4, 0.0, 1.2816, 5.4])
VIDEOS_AN_AUTHOR, AUTHOR_SKEW = 3.38, 0.55
# A video with more slots than this was uploaded before the log began, so that its first row need not be sought.
MOST_ROWS_SOUGHT = 16


def exposures(power: float, most: int) -> tuple[Floats, Floats]:
    """Steps of the histogram of exposures: shares of the videos, and exposures of a video of each step.

    The real log's, cut off where a video would often be shown to a user twice, and flattened by a power from 0 to 1.
    """
    facts = large_facts().videos["popularity"]
    share = np.array(facts["videos"])
    return share / share.sum(), np.minimum(np.array(facts["exposures"]) ** power, most)


def most_exposures(num_users: int) -> int:
    """Rows are about as uneven over users as over half as many equal ones, who see a video once."""
    return max(MIN_MOST, num_users // 2)


def fitting_power(rows_a_video: float, most: int) -> float:
    """The power with which a video has so many rows on average; FLATTEST or 1 where none has."""
    low, high = FLATTEST, 1.0
    for _ in range(50):
        power = (low + high) / 2.0
        low, high = (power, high) if np.dot(*exposures(power, most)) < rows_a_video else (low, power)
    return low


def videos_of(dataset: Dataset, num_examples: int, num_users: int) -> int:
    """How many videos a log has by default: the histogram is the real one, cut off by the number of users.

    So the share of videos that are shown once is that of the real log, and a smaller log has fewer rows a video.
    """
    real_most, own_most = most_exposures(dataset.num_users), most_exposures(num_users)
    power = fitting_power(dataset.num_examples / dataset.num_videos, real_most)
    real, own = (float(np.dot(*exposures(power, most))) for most in (real_most, own_most))
    wanted = dataset.num_videos * (num_examples / dataset.num_examples) * (real / own)
    return min(MAX_VIDEOS, max(MIN_VIDEOS, round(wanted)))


def exposure_curve(num_ranks: int, num_rows: int, num_users: int) -> Curve:
    """Slots of each rank, so flattened that the rows suffice for all ranks.

    Where they do not suffice for the flattest, the last ranks are not shown. Where even the real histogram has fewer
    rows a video than there are, all ranks have more.
    """
    most = most_exposures(num_users)
    power = fitting_power(num_rows / num_ranks, most)
    share, slots = exposures(power, most)
    mean = float(np.dot(share, slots))
    num_shown = min(num_ranks, int(num_rows / mean)) if power == FLATTEST else num_ranks
    return Curve.of(num_shown * share, num_rows / mean * share * slots)


@dataclass(frozen=True, slots=True)
class Traits:
    """What labels need to know of videos; one entry for each video asked about."""

    duration_ms: Ints
    tag: Ints
    author_id: Ints
    click: Floats
    like: Floats
    vector_NK: Floats


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The videos of one generated dataset."""

    seed: int
    num_videos: int
    num_pool: int
    num_unshown: int
    curve: Curve
    deal: Deal
    ranks: Permutation
    forced: dict[str, Ints]

    @classmethod
    def of(cls, plan: Plan) -> Self:
        num_pool = min(POOL, plan.num_videos // 2)
        num_unshown = max(1, round(POOL_UNSHOWN * num_pool / POOL))
        num_ranks = plan.num_videos - num_unshown
        return cls(
            plan.seed,
            plan.num_videos,
            num_pool,
            num_unshown,
            exposure_curve(num_ranks, plan.num_examples, plan.num_users),
            Deal(plan.num_examples, plan.seed),
            Permutation(num_ranks, plan.seed, "rank"),
            _forced(num_pool),
        )

    def shown_in(self, row_number: Ints) -> Ints:
        """The rank that each row, numbered through all users, shows."""
        return self.curve.rank_of(self.deal.slots_of(row_number))

    def ids(self, rank: Ints) -> Ints:
        place = self.ranks.forward(rank)
        return place + self.num_unshown * (place >= self.num_pool - self.num_unshown)

    def ranks_of(self, video: Ints) -> Ints:
        """The last ranks are those of the end of the pool, which the standard log does not show."""
        first_unshown = self.num_pool - self.num_unshown
        unshown = (video >= first_unshown) & (video < self.num_pool)
        place = np.where(video < first_unshown, video, np.maximum(video - self.num_unshown, 0))
        return np.where(unshown, self.ranks.size + video - first_unshown, self.ranks.backward(place))

    def drawn(self, draws: Draws, name: str, weights: Any, video: Ints) -> Ints:
        """A class of each video by weight, but for the videos of the pool that are given a rare one."""
        found = picked(draws.uniform(name), np.array(weights))
        pooled = np.flatnonzero(video < self.num_pool)
        given = self.forced[name][video[pooled]]
        found[pooled] = np.where(given >= 0, given, found[pooled])
        return found

    def scores(self, draws: Draws, rank: Ints, width: int) -> Floats:
        """Correlated normal scores of videos; the first is popularity itself."""
        normals = draws.normals("video score", width)
        normals[:, 0] = normal_score(1.0 - (rank + 0.5) / self.num_videos)
        return correlated(normals, cholesky(large_facts().videos["cholesky"][:width]))

    def traits(self, video: Ints, rank: Ints) -> Traits:
        facts, draws = large_facts().videos, Draws.at(self.seed, "video", video)
        scores = self.scores(draws, rank, NUM_TRAITS)
        kind = self.drawn(draws, "kind", _kind_weights(), video)
        tag = self.drawn(draws, "tag", _tags().weights, video)
        duration = np.rint(from_scores(scores[:, 3], LEVELS, facts["duration"])).astype(np.int64)
        author = self.authors(draws)
        return Traits(
            duration_ms=np.where(draws.below(_null_chances()[kind], "null duration"), 0, duration),
            tag=tag,
            author_id=author,
            click=CLICK_SD * scores[:, 1] + _tags().click[tag],
            like=LIKE_SD * scores[:, 2],
            vector_NK=blended(self.seed, tag_vectors(self.seed, _tags().ids)[_tags().first[tag]], author),
        )

    def authors(self, draws: Draws) -> Ints:
        """Authors from 0 on without gaps, some with thousands of videos and most with two or three."""
        authors = Permutation(max(1, round(self.num_videos / VIDEOS_AN_AUTHOR)), self.seed, "author id")
        place = authors.size * draws.uniform("author") ** (1.0 / AUTHOR_SKEW)
        return authors.forward(np.minimum(place.astype(np.int64), authors.size - 1))

    def upload_days(self, video: Ints, rank: Ints, calendar: Calendar) -> Ints:
        """The day of upload, counted from the dataset's first: some days before the first row, mostly few."""
        draws = Draws.at(self.seed, "video", video)
        shown = rank < self.curve.rank_K[-1]
        low, high = self.curve.slots_of(np.where(shown, rank, 0))
        num_slots = np.where(shown, high - low, 0)
        sought = np.flatnonzero((num_slots > 0) & (num_slots <= MOST_ROWS_SOUGHT))
        starts = np.cumsum(num_slots[sought]) - num_slots[sought]
        slot = np.repeat(low[sought] - starts, num_slots[sought]) + np.arange(num_slots[sought].sum())
        day = (draws.uniform("unshown day") * calendar.dataset.num_days).astype(np.int64)
        if len(sought):
            day[sought] = np.minimum.reduceat(calendar.days(self.deal.rows_of(slot)), starts)
        fresh = np.floor(np.exp(0.3 + 1.6 * draws.normal("age"))) - 1.0
        old = 1.0 + np.floor(np.exp(3.5 + 1.3 * draws.normal("age")))
        popular = num_slots > MOST_ROWS_SOUGHT
        day = np.where(popular, 0, day) - np.clip(np.where(popular, old, fresh), 0, 4_000).astype(np.int64)
        # The pool was uploaded within three days, as all of KuaiRand-Pure.
        pool_day = 1 + (draws.uniform("pool day") * 3.0).astype(np.int64)
        return np.where(video < self.num_pool, np.minimum(day, pool_day), day)

    def first_without_duration(self) -> int:
        pool = np.arange(self.num_pool - self.num_unshown)
        return int(np.argmax(self.traits(pool, self.ranks_of(pool)).duration_ms == 0))


@dataclass(frozen=True, slots=True)
class _Tags:
    """Strings of tags: how often each is used, which is its first tag (a place in `ids`), how that is clicked."""

    weights: Ints
    first: Ints
    ids: Ints
    click: Floats


@lru_cache(maxsize=1)
def _tags() -> _Tags:
    facts = large_facts().videos
    firsts = [text.split(",")[0] for text, _ in facts["tags"]]
    distinct = sorted(set(firsts))
    return _Tags(
        weights=np.array([count for _, count in facts["tags"]]),
        first=np.array([distinct.index(name) for name in firsts]),
        ids=np.arange(len(distinct)),
        click=np.array([facts["tag_click"].get(name, 0.0) for name in firsts]),
    )


def _kind_weights() -> list[int]:
    return [count for _, _, count, _ in large_facts().videos["kinds"]]


def _null_chances() -> Floats:
    return np.array([chance for *_, chance in large_facts().videos["kinds"]])


def _forced(num_pool: int) -> dict[str, Ints]:
    """For each column the class that a video of the pool is given, or -1; a class once at least, if the pool allows."""
    facts = large_facts().videos
    lengths = [len(text.split(",")) if text else 0 for text, _ in facts["tags"]]
    wanted = {
        "kind": [int(kind) for kind in np.argsort(-_null_chances(), kind="stable")],
        "tag": [lengths.index(length) for length in range(max(lengths) + 1)],
        "visible_status": list(range(len(facts["visible_status"]))),
        "music_type": list(range(len(facts["music_type"]))),
        "oddity": [1, 2, 3, 4, 5, 6],
    }
    forced: dict[str, Ints] = {}
    for shift, (name, classes) in enumerate(wanted.items()):
        classes = classes[: num_pool // 4]
        stride = num_pool // (len(classes) + 1)
        forced[name] = np.full(num_pool, -1)
        forced[name][stride * np.arange(1, len(classes) + 1) + shift] = classes
    return forced
