"""The studies: one small file each, and a line in `STUDIES`."""

from __future__ import annotations

from tightwire.errors import LabError
from tightwire.study.studies import architecture, compression, sync
from tightwire.study.study import Study

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        compression.COMPRESSION,
        architecture.ARCHITECTURE,
        sync.SYNC,
        compression.RATES,
        architecture.RATES,
        sync.RATES,
    )
}


def find(name: str) -> Study:
    """Returns a study, or the race of one, by name.

    Raises:
        LabError: nobody has that name; lists those that exist.
    """
    races = {study.race.name: study.race for study in STUDIES.values() if study.race}
    if name not in STUDIES | races:
        raise LabError(f"there is no study {name!r}; there are {', '.join(STUDIES)}.")
    return (STUDIES | races)[name]
