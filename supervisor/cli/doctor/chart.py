"""The findings as a person reads them, and as a script does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from supervisor.cli.doctor.finding import Finding, Grade

STYLES = {Grade.PASS: "green", Grade.WARN: "yellow", Grade.FAIL: "red"}


def show(findings: Sequence[Finding], console: Console) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    for finding in findings:
        said = f"{finding.check}: {finding.what}" + (f"\n-> {finding.instead}" if finding.instead else "")
        table.add_row(Text(finding.grade.value, STYLES[finding.grade]), Text(said))
    console.print(table)
    counts = Counter(finding.grade for finding in findings)
    console.print(f"\n{counts[Grade.PASS]} passed, {counts[Grade.WARN]} warned, {counts[Grade.FAIL]} failed")


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    listed = [
        {"check": each.check, "grade": each.grade.value, "what": each.what, "instead": each.instead}
        for each in findings
    ]
    return {"ok": is_well(findings), "checks": listed}


def is_well(findings: Sequence[Finding]) -> bool:
    return all(finding.grade is not Grade.FAIL for finding in findings)
