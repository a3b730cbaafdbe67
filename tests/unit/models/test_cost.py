"""Parameters and FLOPs: against the equations' own count, and as `infnet-rec model` shows them.

Shapes: M categorical tokens, F sequences, L sequence tokens of an example, T tasks, D width.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from infnet_rec import cli
from infnet_rec.analysis.model_summary import OTHERS, cost_of
from infnet_rec.benchmark.forms.reference_infnet import LiteralInfnet
from infnet_rec.config.baselines import MmoeConfig
from infnet_rec.config.model import InfnetConfig
from infnet_rec.models.baselines.mmoe import Mmoe
from infnet_rec.models.infnet.model import Infnet
from infnet_rec.models.tokens import TokenLayout

CONFIG = Path(__file__).parents[2] / "small.toml"


@dataclass(frozen=True)
class Formula:
    """INFNet's FLOPs for one example, a multiplication and an addition being two."""

    M: int
    L: int
    F: int
    d: int
    m: int = 4
    Ns: int = 2
    Nt: int = 3
    h_c: int = 128
    h_g: int = 64
    head: tuple[int, int] = (64, 32)

    def categorical_stem(self) -> int:
        return 2 * (self.M * self.d * self.h_c + self.h_c * self.m * self.d)

    def heads(self) -> int:
        h1, h2 = self.head
        return 2 * self.Nt * (self.d * h1 + h1 * h2 + h2)

    def gates(self, num_proxies: int, num_gates: int) -> int:
        return 2 * (num_proxies * self.d * self.h_g + num_gates * self.h_g * self.d)

    def literal(self) -> int:
        """Every block computes everything, every event is projected."""
        d, m, F, Ns, Nt, L, M = self.d, self.m, self.F, self.Ns, self.Nt, self.L, self.M
        projections = 4 * d * d * (m + F + Ns + Nt) + 4 * d * d * (3 * L + 3 * M + 2 * Nt)
        attention = 4 * d * (m * (L + Nt) + F * (M + Nt) + (Ns + Nt) * (M + L))
        block = projections + attention + self.gates(m + F + Ns, 3)
        return self.categorical_stem() + 2 * L * d * d + 2 * block + self.heads()

    def absorbed(self) -> int:
        """Projections are moved to the queries, and events are pooled before they are projected."""
        d, m, F, Ns, Nt, L, M = self.d, self.m, self.F, self.Ns, self.Nt, self.L, self.M
        attention = 4 * d * (m * (L + Nt) + F * (M + Nt) + (Ns + Nt) * (M + L))
        block = 8 * d * d * (m + F + Ns + Nt) + attention + self.gates(m + F + Ns, 3)
        return self.categorical_stem() + 2 * F * d * d + 2 * block + self.heads()

    def dead(self) -> int:
        """What C~, S~, C and S of the last block would cost beside their projections."""
        d, m, F, Nt, L, M = self.d, self.m, self.F, self.Nt, self.L, self.M
        return 4 * d * (m * (L + Nt) + F * (M + Nt)) + self.gates(m + F, 2)


def flops(form: type[Infnet], sizes: Formula, lengths_FB: torch.Tensor) -> int:
    groups = tuple(f % sizes.F for f in range(lengths_FB.shape[0]))
    tower = form(
        num_features=sizes.M,
        group_of_sequence=groups,
        num_tasks=sizes.Nt,
        config=InfnetConfig(width=sizes.d, num_categorical_proxies=sizes.m, num_shared_tokens=sizes.Ns),
    )
    parts = cost_of(tower, sizes.M, sizes.d, lengths_FB)
    assert sum(part.num_parameters for part in parts) == sum(p.numel() for p in tower.parameters())
    return sum(part.flops for part in parts)


def test_the_formula_is_that_of_the_papers_setting() -> None:
    """5.95 and 2.02 MFLOP, worked out by hand; the second projects every event (2 L d^2), not every proxy (2 F d^2)."""
    setting = Formula(M=89, L=560, F=28, d=16)
    assert round(setting.literal() / 1e6, 2) == 5.95
    assert round((setting.absorbed() + 2 * (560 - 28) * 16**2) / 1e6, 2) == 2.02


@pytest.mark.parametrize(("M", "num_sequences", "length", "F", "d"), [(9, 4, 16, 2, 8), (89, 28, 32, 28, 16)])
def test_infnets_flops_are_those_of_the_formula(M: int, num_sequences: int, length: int, F: int, d: int) -> None:
    lengths_FB, L = torch.full((num_sequences, 2), length), num_sequences * length

    sizes = Formula(M=M, L=L, F=F, d=d)
    # The proxies C~ and S~ project themselves (2 flows each), and as keys C and S (one each), and T (two).
    dead = sizes.dead() + 4 * d * d * (sizes.m + F) + 4 * d * d * (L + M + 2 * sizes.Nt)
    pooled_by_a_product = 2 * F * num_sequences * d
    assert flops(LiteralInfnet, sizes, lengths_FB) == sizes.literal() - dead + pooled_by_a_product

    # Examples of one length share a chunk without padding.
    assert flops(Infnet, sizes, lengths_FB) == sizes.absorbed() - sizes.dead() - 8 * d * d * (sizes.m + F)


def test_parts_add_up_and_lists_of_modules_are_opened() -> None:
    layout = TokenLayout(("a", "b"), ("s",), (0,), (0,), (None,), 2)
    options = MmoeConfig(width=4, num_experts=3, expert_hidden=(7,), gate_hidden=(5,), head_hidden=())
    parts = {part.name: part for part in cost_of(Mmoe(layout, options), 2, 4, torch.tensor([[0, 3]]))}
    assert list(parts) == ["experts", "gates.0", "gates.1", "heads"]
    assert parts["experts"].num_parameters == 3 * (12 * 7 + 7)
    assert parts["experts"].flops == 3 * 2 * 12 * 7
    # Two layers, and the sum of three experts.
    assert parts["gates.1"].flops == 2 * (12 * 5 + 5 * 3) + 2 * 3 * 7
    assert parts["heads"].flops == 2 * 2 * 7


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight_D1 = nn.Parameter(torch.ones(4, 1))

    def forward(self, tokens: Any) -> torch.Tensor:
        return tokens.categorical_BMD.sum(dim=1) @ self.weight_D1


def test_what_belongs_to_no_part_is_counted_too() -> None:
    (part,) = cost_of(Product(), 3, 4, torch.tensor([[0, 0]]))
    assert (part.name, part.num_parameters, part.flops) == (OTHERS, 4, 8)


def run(*arguments: object) -> Any:
    answer = CliRunner().invoke(cli.app, ["model", str(CONFIG), *map(str, arguments)])
    assert answer.exit_code == 0, answer.output
    return answer


@pytest.mark.parametrize("name", ["infnet", "stem", "dien", "hstu"])
def test_the_verb_counts_what_the_model_has(name: str, small_store: Path) -> None:
    of_run = [f"--set=data.store={small_store}", f'--set=model={{name = "{name}", width = 8}}']
    full, ragged = (json.loads(run("--json", *of_run, *more).stdout) for more in ((), ("--ragged",)))
    assert full["model"]["name"] == name and full["tasks"] == ["click", "like", "long_view"]
    assert full["events_per_example"] == 28 * 10 and 0 < ragged["events_per_example"] < 280
    assert full["num_dense_parameters"] == sum(part["num_parameters"] for part in full["parts"])
    assert full["flops_per_example"] == sum(part["flops"] for part in full["parts"]) > 0
    # STEM averages events and multiplies only then.
    assert (ragged["flops_per_example"] < full["flops_per_example"]) == (name != "stem")
    assert ragged["num_dense_parameters"] == full["num_dense_parameters"]
    tables = full["tables"]
    assert tables["width"] == (32 if name == "stem" else 8)
    assert tables["num_parameters"] == tables["num_rows"] * tables["width"]


def test_the_verb_counts_hstus_own_width(small_store: Path) -> None:
    """The context's layer has one set of parameters, and a product for each of its tokens."""
    counts = {}
    for own in (8, 64):
        section = f'--set=model={{name = "hstu", width = 8, transducer_width = {own}}}'
        counts[own] = json.loads(run("--json", f"--set=data.store={small_store}", section).stdout)
    parts = {part["name"]: part for part in counts[64]["parts"]}
    num_context = 89 - 4
    assert parts["context_layer"]["num_parameters"] == 8 * 64 + 64
    assert parts["context_layer"]["flops"] == num_context * 2 * 8 * 64
    assert "context_layer" not in {part["name"] for part in counts[8]["parts"]}
    assert counts[64]["flops_per_example"] > 8 * counts[8]["flops_per_example"]
    assert counts[64]["tables"] == counts[8]["tables"]


def test_the_verbs_table(small_store: Path) -> None:
    text = run(f"--set=data.store={small_store}").stdout.splitlines()
    assert text[0].startswith("infnet of width 8: 89 features, 28 sequences with 280 events an example")
    rows = {line.split("  ")[0]: line.split()[-2:] for line in text}
    assert [name for name in rows if name.startswith("blocks")] == ["blocks.0", "blocks.1"]
    total = sum(int(rows[name][0].replace(",", "")) for name in rows if name.startswith(("start", "blocks", "heads")))
    assert rows["dense part"][0] == f"{total:,}"
