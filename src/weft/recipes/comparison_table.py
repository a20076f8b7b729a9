"""What a comparison found: each candidate's row beside its baseline, as a table for the terminal, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from weft.evaluation.evaluation import MODEL, MOST_FREQUENT, RUN_TITLES, TEXT_ONLY
from weft.evaluation.report.words import count
from weft.evaluation.statistics import Estimate
from weft.recipes.comparison_row import Row
from weft.recipes.conditions import Conditions
from weft.training.progress import clock

if TYPE_CHECKING:
    from rich.table import Table

NAME = "comparison"


@dataclass(frozen=True)
class Finding:
    """A candidate with its rows, one a seed.

    `row` stands for it: the row of the median accuracy among those that learned to look (of an even number the lower one), or
    among all where none did. A seed changes no cost, so the time is that of the row that was disturbed least.
    """

    rows: tuple[Row, ...]

    @cached_property
    def row(self) -> Row:
        counted = [row for row in self.rows if row.learned] or list(self.rows)
        return sorted(counted, key=lambda row: row.accuracy.value)[(len(counted) - 1) // 2]

    @property
    def learned(self) -> bool:
        return self.row.learned

    @property
    def training_seconds(self) -> float:
        return min(row.training_seconds for row in self.rows)

    @property
    def seeds(self) -> str:
        """The accuracy of every seed, in their order; of one that did not learn to look a dash."""
        return " ".join(_points(row.accuracy) if row.learned else "-" for row in self.rows)


@dataclass(frozen=True)
class Comparison:
    """The rows of a comparison so far, and those that stay out, each with its reason.

    `budget` says how long a row trains, `command` what makes the same.
    """

    room: str
    budget: str
    questions_per_type: int
    rows: Sequence[Row]
    left_out: Mapping[str, str] = field(default_factory=dict)
    command: str = ""

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """The candidates: first those that learned to look, the most accurate first."""
        by_name: dict[str, list[Row]] = {}
        for row in self.rows:
            by_name.setdefault(row.candidate, []).append(row)
        found = [Finding(tuple(sorted(rows, key=lambda row: row.seed))) for rows in by_name.values()]
        return tuple(sorted(found, key=lambda f: (not f.learned, -f.row.accuracy.value, f.row.candidate)))

    @property
    def not_learned(self) -> tuple[Row, ...]:
        """The rows that do not count."""
        return tuple(row for finding in self.findings for row in finding.rows if not row.learned)

    @property
    def made_with(self) -> list[str]:
        """The command, and what the rows were made with: in one line, or one for all rows that agree."""
        alike: dict[tuple[Conditions, ...], list[Row]] = {}
        for finding in self.findings:
            for row in finding.rows:
                alike.setdefault(row.conditions, []).append(row)
        lines = [f"`{self.command}`"] if self.command else []
        if len(alike) > 1:
            lines.append("not all rows were made alike, so times and memory compare only within a line")
        for conditions, rows in alike.items():
            names = "all rows" if len(alike) == 1 else ", ".join(f"{row.candidate} {row.seed}" for row in rows)
            lines.append(f"{names}: {_told(rows) if conditions else 'not recorded'}")
        return lines

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values; the rows are those of their `row.json`."""
        return {
            "room": self.room,
            "budget": self.budget,
            "questions_per_type": self.questions_per_type,
            "command": self.command,
            "candidates": [
                {
                    "name": finding.row.candidate,
                    "learned": finding.learned,
                    "median_seed": finding.row.seed,
                    "rows": [asdict(row) | {"learned": row.learned, "reason": row.reason} for row in finding.rows],
                }
                for finding in self.findings
            ],
            "left_out": dict(self.left_out),
        }

    def markdown(self) -> str:
        """The table with its notes."""
        lines = [
            f"# {self.room.capitalize()} compared on the desk",
            "",
            self.caption,
            "",
            *_markdown(*self._by_candidate(_COLUMNS)),
            "",
            "`trained` is the share of the parameters that each stage of a row trains, in percent.",
            "",
            "## By question type",
            "",
            *_markdown([_CANDIDATE, *self.types], self._by_type()),
        ]
        for title, notes in self.notes.items():
            lines += ["", f"## {title}", "", *(f"- {note}" for note in notes)]
        return "\n".join(lines) + "\n"

    def _by_candidate(self, columns: Sequence[_Column]) -> tuple[list[str], list[list[str]]]:
        """Titles and a line a candidate; a column that says nothing of any is left out."""
        cells = {title: [cell(finding) for finding in self.findings] for title, cell in columns}
        filled = {title: column for title, column in cells.items() if any(column)}
        return list(filled), [list(line) for line in zip(*filled.values(), strict=True)]

    @property
    def types(self) -> tuple[str, ...]:
        """The question types that were asked."""
        return tuple(self.findings[0].row.by_type)

    def _by_type(self) -> list[list[str]]:
        """A line a candidate, learned or not, then one for each baseline that has no pictures, which all rows share."""
        first = self.findings[0].row
        lines = [(f.row.candidate, MODEL, f.row) for f in self.findings]
        lines += [(RUN_TITLES[run], run, first) for run in (TEXT_ONLY, MOST_FREQUENT)]
        return [
            [name, *("" if (score := scores.get(run)) is None else _rounded(score) for scores in row.by_type.values())]
            for name, run, row in lines
        ]

    @property
    def caption(self) -> str:
        asked = f"{self.questions_per_type} questions of each type"
        return f"Share right in percent with its 95% interval over questions; {self.budget}, {asked}."

    @property
    def notes(self) -> dict[str, list[str]]:
        """What the table does not say, by title."""
        notes = {
            "Made with": self.made_with,
            "Not learned": [f"{row.candidate}, seed {row.seed}: {row.reason}" for row in self.not_learned],
            "Left out": [f"{name}: {reason}" for name, reason in self.left_out.items()],
        }
        return {title: lines for title, lines in notes.items() if lines}

    def terminal_table(self, width: int) -> Table:
        """The table for a terminal of so many columns; a narrow one shows the median without the single seeds."""
        from rich.table import Table

        for columns, space in ((_COLUMNS, 2), (_COLUMNS, 1), (_NARROW, 1)):
            titles, lines = self._by_candidate(columns)
            widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
            if sum(widths) + space * (len(widths) - 1) <= width:
                break
        table = Table(box=None, padding=(0, space), collapse_padding=True, pad_edge=False, header_style="dim")
        for title in titles:
            table.add_column(title, justify="left" if title == _CANDIDATE else "right", no_wrap=True)
        for finding, cells in zip(self.findings, lines, strict=True):
            table.add_row(*cells, style="" if finding.learned else "dim")
        return table


def _told(rows: Sequence[Row]) -> str:
    """The conditions of rows that agree in them, with the days."""
    days = sorted({each.date for row in rows for each in row.conditions})
    made = "; then ".join(map(str, rows[0].conditions))
    return f"{made}, {days[0] if len(days) == 1 else f'{days[0]} to {days[-1]}'}"


def _points(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f}"


def _accuracy(finding: Finding) -> str:
    """The median seed's figure, which stands in the notes where it does not count."""
    return _share(finding.row.accuracy) if finding.learned else "not learned"


def _share(score: Estimate) -> str:
    return f"{_points(score)} ({100 * score.low:.1f}-{100 * score.high:.1f})"


def _rounded(score: Estimate) -> str:
    return f"{100 * score.value:.0f} ({100 * score.low:.0f}-{100 * score.high:.0f})"


def _trained(finding: Finding) -> str:
    return " ".join(f"{100 * share:.0f}" if share >= 0.1 else f"{100 * share:.1f}" for share in finding.row.trained.values())


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|---{'|---:' * (len(head) - 1)}|",
        *(f"| {' | '.join(cells)} |" for cells in lines),
    ]


def _memory(finding: Finding) -> str:
    peak = finding.row.peak_memory_bytes
    return "" if peak is None else f"{peak / 2**30:.2f}"


_Column = tuple[str, Callable[[Finding], str]]
_CANDIDATE = "candidate"
_COLUMNS: tuple[_Column, ...] = (
    (_CANDIDATE, lambda f: f.row.candidate),
    ("family", lambda f: f.row.family),
    ("right (95%)", _accuracy),
    ("seeds", lambda f: f.seeds),
    ("shuffled", lambda f: _points(f.row.shuffled)),
    ("tokens", lambda f: f"{f.row.tokens}"),
    ("trained", _trained),
    ("parameters", lambda f: count(f.row.parameters)),
    ("GFLOP", lambda f: f"{f.row.training_flops / 1e9:.2f}"),
    ("time", lambda f: clock(f.training_seconds)),
    ("GiB", _memory),
)
_NARROW = tuple(column for column in _COLUMNS if column[0] not in ("family", "seeds", "trained"))
