"""Damaged files end in a value or in one sentence, in no time (see fuzzing.py, which tries many more)."""

from pathlib import Path

from tests import fuzzing, option_fuzzing


def test_damaged_files_end_in_one_sentence(tmp_path: Path) -> None:
    found = [f"{name}: {what}" for name, _, what in fuzzing.faults(440, 1, tmp_path)]
    assert not found, "\n".join(found)


def test_odd_options_end_in_one_sentence_that_names_them(tmp_path: Path) -> None:
    found = [f"{line}: {what}" for line, what in option_fuzzing.faults(51, 3, tmp_path)]
    assert not found, "\n".join(found)
