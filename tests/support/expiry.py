"""What becomes of a source's records when a storage unit does what expiry decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from turku_core.storage.expiry import Decision
from turku_core.storage.records import Record


def carried_out(
    decision: Decision, records: Sequence[Record], now: datetime, *, is_full: bool = False
) -> list[Record]:
    """Return the records that there are afterwards, in their order.

    Args:
        decision: Of these records.
        records: All that there are.
        now: When it is carried out.
        is_full: Whether the volume is over its mark, so that more is removed.
    """
    removed = [*decision.remove, *(decision.remove_when_full if is_full else ())]
    gone, expired, back = (
        {record.id for record in each} for each in (removed, decision.expire, decision.unexpire)
    )
    return [
        replace(record, expired_at=now if record.id in expired else None)
        if record.id in expired | back
        else record
        for record in records
        if record.id not in gone
    ]
