"""`privacy_checklist`: answers to the questions of a privacy officer, from the findings of `audit`."""

from __future__ import annotations

import attrs

from streaminfer._internal.display.document import Document
from streaminfer._internal.display.html_report import text_table
from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.validation import check_instance
from streaminfer.auditing.stack_audit import Audit

__all__ = ["ChecklistAnswer", "PrivacyChecklist", "privacy_checklist"]

_QUESTIONS = (
    ("Is there a longest time for which an answer is kept?", ("max-age", "ttl")),
    ("Is what must be kept for a minimum time kept that long?", ("min-age",)),
    ("Can the data of one person be erased?", ("subjects",)),
    ("Is every copy that an erasure does not reach gone by a known time?", ("residual",)),
    ("Is stored data encrypted?", ("tier",)),
    ("Can every machine that shares stored data read it, and destroy its keys?", ("key-store",)),
    ("Are answers kept from callers who make inputs that share a key?", ("keys",)),
    ("Is data encrypted on its way to other machines?", ("hop",)),
    ("Is it recorded what was erased, and is no erasure owed?", ("log",)),
)
_ANSWERS = {"fail": "no", "attention": "to be looked at", "ok": "yes"}  # the worst first
_NOT_SEEN = "not seen"
_MARKS = {"yes": "good", "to be looked at": "so", _NOT_SEEN: "so", "no": "bad"}
_HEAD = ("answer", "question", "evidence")


@attrs.frozen(kw_only=True)
class ChecklistAnswer:
    """One question with its answer.

    Attributes:
        question: the question.
        answer: the worst of the findings: ``"no"``, ``"to be looked at"`` or ``"yes"``; ``"not seen"``: the stack has
            nothing that the question concerns, or does not declare it.
        evidence: place, finding and remedy, a line for each finding.
    """

    question: str
    answer: str
    evidence: tuple[str, ...]


@attrs.frozen
class PrivacyChecklist(Document):
    """Questions and answers of a privacy checklist; they are as reliable as the audit behind them.

    Attributes:
        answers: in the order of the questions.
    """

    answers: tuple[ChecklistAnswer, ...]
    schema = "streaminfer.privacy-checklist"
    title = "Privacy checklist"

    def _repr_html_(self) -> str:
        return html_table(self._rows(), head=_HEAD, marks=_MARKS)

    def __str__(self) -> str:
        return text_table(_HEAD, self._rows())

    def _rows(self) -> list[tuple[str, ...]]:
        return [(it.answer, it.question, "; ".join(it.evidence) or "–") for it in self.answers]


def privacy_checklist(audit: Audit) -> PrivacyChecklist:
    """Answer the questions of a privacy checklist from the findings of an audit.

    Args:
        audit: what `audit` returned.

    Raises:
        TypeError: ``audit`` is not an `Audit`.
    """
    check_instance("audit", audit, Audit, "an Audit, which audit(stack) returns")
    answers = []
    for question, checks in _QUESTIONS:
        findings = [it for it in audit.findings if it.check in checks]
        severities = {it.severity for it in findings}
        worst = next((answer for severity, answer in _ANSWERS.items() if severity in severities), _NOT_SEEN)
        lines = tuple(f"{it.where}: {it.what}" + (f" → {it.remedy}" if it.remedy else "") for it in findings)
        answers.append(ChecklistAnswer(question=question, answer=worst, evidence=lines))
    return PrivacyChecklist(tuple(answers))
